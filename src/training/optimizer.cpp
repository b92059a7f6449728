#include "mirabelle/training/optimizer.h"

#include <algorithm>

#include "mirabelle/core/copy.h"
#include "mirabelle/core/profile_range.h"
#include "mirabelle/kernels/adamw.h"
#include "mirabelle/kernels/convert.h"
#include "mirabelle/kernels/muon.h"
#include "mirabelle/kernels/reduce.h"

namespace mirabelle {
namespace {

/// Elements of a layer's region; they are all of one size.
int64_t layer_elements(const ParameterLayout& layout) {
  return layout.regions()[layout.layer_region(0)].size();
}

int64_t scratch_elements(const ParameterLayout& layout) {
  int64_t most = 0;
  for (const MatrixBatch& batch : layout.layer_matrices(0)) {
    most = std::max(most, orthogonalise_scratch(batch.shape()));
  }
  return most;
}

}  // namespace

Optimizer::Optimizer(const ParameterLayout& layout, const FlatPartition& partition,
                     const GradientReducer& reducer, const TrainingConfig& config, DType dtype,
                     Device device, const Communicator* everyone)
    : layout_(layout),
      partition_(partition),
      reducer_(reducer),
      config_(config),
      everyone_(everyone),
      grad_squares_({1}, DType::kFloat64, device),
      largest_({1}, DType::kFloat64, device),
      fixed_point_({2}, DType::kInt64, device) {
  if (reducer.is_sharded()) {
    for (const Bucket& bucket : partition.buckets()) {
      ranges_.push_back({bucket.owned, bucket.owned_offset, reducer.gradient(bucket)});
    }
  } else {
    ranges_.push_back({{0, layout.num_elements()}, 0, reducer.gradients()});
  }
  for (const Range& range : ranges_) {
    for (const FlatRange& primary : layout.primary_ranges()) {
      const int64_t begin = std::max(primary.begin, range.flat.begin) - range.flat.begin;
      const int64_t end = std::min(primary.end, range.flat.end) - range.flat.begin;
      if (begin < end) counted_gradients_.push_back(range.gradient.rows(begin, end));
    }
  }
  const int64_t num_updated =
      reducer.is_sharded() ? partition.num_owned() : partition.num_elements();
  range_squares_ =
      Buffer({static_cast<int64_t>(counted_gradients_.size())}, DType::kFloat64, device);
  exp_avg_ = Buffer({num_updated}, wide(dtype), device);
  exp_avg_sq_ = Buffer({num_updated}, wide(dtype), device);
  if (wide(dtype) != dtype) master_ = Buffer({num_updated}, wide(dtype), device);

  const int64_t norms = layout.norms();
  if (config.uses_muon()) {
    const int64_t first = layout.layer_region(0), num_layers = layout.layers().size();
    adamw_ranges_ = {{{0, layout.regions()[first].begin}, true},
                     {{layout.regions()[first + num_layers - 1].end, norms}, true}};
    directions_ = Buffer({layer_elements(layout)}, wide(dtype), device);
    scratch_ = Buffer({scratch_elements(layout)}, wide(dtype), device);
  } else {
    adamw_ranges_ = {{{0, norms}, true}};
  }
  adamw_ranges_.push_back({{norms, layout.num_elements()}, false});
}

int64_t Optimizer::bytes(const TrainingConfig& config, const ParameterLayout& layout,
                         int64_t num_updated, DType dtype) {
  const int64_t copies = wide(dtype) == dtype ? 2 : 3;  // two moments, and master weights
  int64_t elements = copies * num_updated;
  if (config.uses_muon()) elements += layer_elements(layout) + scratch_elements(layout);
  return elements * size_in_bytes(wide(dtype));
}

void Optimizer::set_weights(const TensorView& weights, const TensorView& values,
                            const Stream& stream) {
  Buffer on_device;
  TensorView wide_values = values;
  if (weights.device != values.device) {
    on_device = Buffer(values.shape, values.dtype, weights.device);
    copy(on_device.view(), values, stream);
    wide_values = on_device.view();
  }
  if (master_.view()) {
    round_to(weights, wide_values, stream);
    for (const Range& range : ranges_) {
      copy(master_.view().rows(range.offset, range.offset + range.flat.size()),
           wide_values.rows(range.flat.begin, range.flat.end), stream);
    }
  } else {
    copy(weights, wide_values, stream);
  }
  stream.synchronize();
}

void Optimizer::update(const TensorView& weights, int64_t step, double learning_rate,
                       double max_good_norm, const Stream& stream) {
  const ProfileRange profile("optimizer");
  sum_squares(stream);
  update_with_adamw(weights, step, learning_rate, max_good_norm, stream);
  if (!config_.uses_muon()) return;
  for (size_t layer = 0; layer < layout_.layers().size(); ++layer) {
    update_with_muon(weights, static_cast<int64_t>(layer), learning_rate, max_good_norm, stream);
  }
}

template <typename Body>
void Optimizer::for_each_updated(const FlatRange& flat, Body body) const {
  for (const Range& range : ranges_) {
    const int64_t begin = std::max(flat.begin, range.flat.begin);
    const int64_t end = std::min(flat.end, range.flat.end);
    if (begin >= end) continue;
    const auto own = [&](const Buffer& array) {
      const int64_t shift = range.offset - range.flat.begin;
      return array.view() ? array.view().rows(begin + shift, end + shift) : TensorView{};
    };
    body(begin, end, own, range.gradient.rows(begin - range.flat.begin, end - range.flat.begin));
  }
}

void Optimizer::update_with_adamw(const TensorView& weights, int64_t step, double learning_rate,
                                  double max_good_norm, const Stream& stream) {
  AdamWStep scalars;
  scalars.learning_rate = learning_rate;
  scalars.beta1 = config_.beta1;
  scalars.beta2 = config_.beta2;
  scalars.epsilon = config_.epsilon;
  scalars.step = step + 1;
  scalars.max_good_norm = max_good_norm;
  if (config_.max_grad_norm > 0) scalars.max_grad_norm = config_.max_grad_norm;
  for (const AdamWRange& range : adamw_ranges_) {
    scalars.weight_decay = range.is_decayed ? config_.weight_decay : 0;
    for_each_updated(
        range.flat, [&](int64_t begin, int64_t end, const auto& own, const TensorView& gradient) {
          adamw_update(weights.rows(begin, end), own(master_), own(exp_avg_), own(exp_avg_sq_),
                       gradient, grad_squares_.view(), scalars, stream);
        });
  }
}

void Optimizer::update_with_muon(const TensorView& weights, int64_t layer, double learning_rate,
                                 double max_good_norm, const Stream& stream) {
  MuonStep scalars;
  scalars.learning_rate = learning_rate;
  if (config_.muon_learning_rate > 0) {
    scalars.learning_rate *= config_.muon_learning_rate / config_.learning_rate;
  }
  scalars.momentum = config_.muon_momentum;
  scalars.max_good_norm = max_good_norm;
  scalars.weight_decay = config_.weight_decay;
  if (config_.max_grad_norm > 0) scalars.max_grad_norm = config_.max_grad_norm;
  const FlatRange& region = layout_.regions()[layout_.layer_region(layer)];
  const auto directions = [&](const FlatRange& flat) {
    return directions_.view().rows(flat.begin - region.begin, flat.end - region.begin);
  };
  for_each_updated(region,
                   [&](int64_t begin, int64_t end, const auto& own, const TensorView& gradient) {
                     muon_momentum(directions({begin, end}), own(exp_avg_), gradient,
                                   grad_squares_.view(), scalars, stream);
                   });
  if (reducer_.is_sharded()) {
    for (const Bucket& bucket : partition_.buckets_of(layout_.layer_region(layer))) {
      reducer_.data_parallel().all_gather(directions(bucket.range), directions(bucket.owned),
                                          stream);
    }
  }
  for (const MatrixBatch& matrices : layout_.layer_matrices(layer)) {
    orthogonalise(directions(matrices.range()).reshaped(matrices.shape()), scratch_.view(), stream);
    for_each_updated(matrices.range(),
                     [&](int64_t begin, int64_t end, const auto& own, const TensorView&) {
                       muon_update(weights.rows(begin, end), own(master_), directions({begin, end}),
                                   grad_squares_.view(),
                                   muon_scale(matrices.rows, matrices.columns), scalars, stream);
                     });
  }
}

/// In the reproducible mode as integers, which add up to the same sum in any order.
void Optimizer::sum_squares(const Stream& stream) {
  const TensorView& sum = grad_squares_.view();
  if (config_.reproducible) {
    fill_zero(largest_.view(), stream);
    fill_zero(fixed_point_.view(), stream);
    for (const TensorView& part : counted_gradients_) max_magnitude(largest_.view(), part, stream);
    if (everyone_) everyone_->all_reduce(largest_.view(), ReduceOp::kMax, stream);
    for (const TensorView& part : counted_gradients_) {
      add_fixed_point_squares(fixed_point_.view(), part, largest_.view(), stream);
    }
    if (everyone_) everyone_->all_reduce(fixed_point_.view(), ReduceOp::kSum, stream);
    return fixed_point_value(sum, fixed_point_.view(), largest_.view(), stream);
  }
  for (size_t i = 0; i < counted_gradients_.size(); ++i) {
    const auto row = static_cast<int64_t>(i);
    sum_of_squares(range_squares_.view().rows(row, row + 1), counted_gradients_[i], stream);
  }
  fill_zero(sum, stream);
  add_sum(sum, range_squares_.view(), stream);
  if (everyone_) everyone_->all_reduce(sum, ReduceOp::kSum, stream);
}

Optimizer::State Optimizer::state(const TensorView& weights, const Bucket& bucket) const {
  const bool is_sharded = reducer_.is_sharded();
  const int64_t offset = is_sharded ? bucket.owned_offset : bucket.owned.begin;
  const auto own = [&](const Buffer& array) {
    return array.view().rows(offset, offset + bucket.owned.size());
  };
  return {master_.view() ? own(master_) : weights.rows(bucket.owned.begin, bucket.owned.end),
          own(exp_avg_), own(exp_avg_sq_)};
}

void Optimizer::set_state(const TensorView& weights, const State& values, const Stream& stream) {
  set_weights(weights, values.master, stream);
  for (const Range& range : ranges_) {
    const auto put = [&](const Buffer& own, const TensorView& flat) {
      copy(own.view().rows(range.offset, range.offset + range.flat.size()),
           flat.rows(range.flat.begin, range.flat.end), stream);
    };
    put(exp_avg_, values.exp_avg);
    put(exp_avg_sq_, values.exp_avg_sq);
  }
  stream.synchronize();
}

void Optimizer::reset(const Stream& stream) {
  fill_zero(exp_avg_.view(), stream);
  fill_zero(exp_avg_sq_.view(), stream);
}

}  // namespace mirabelle
