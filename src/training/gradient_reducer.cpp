#include "mirabelle/training/gradient_reducer.h"

#include <bit>

#include "mirabelle/core/copy.h"
#include "mirabelle/core/profile_range.h"
#include "mirabelle/kernels/reduce.h"

namespace mirabelle {
namespace {

/// A rank by itself has nothing to shard.
GradientReducer::Options effective(GradientReducer::Options options, int64_t data_parallel_size) {
  if (data_parallel_size == 1) options.zero_stage = 0;
  return options;
}

/// Partial sums that wait for others at the same time, of so many parts one after the other.
int64_t num_levels(const GradientReducer::Options& options) {
  if (!options.reproducible) return 0;
  return std::bit_width(static_cast<uint64_t>(options.parts_per_rank)) - 1;
}

/// Whether every part's gradient is scattered by itself; else their sum is.
bool sends_every_part(const GradientReducer::Options& options) {
  return options.zero_stage == 2 && num_levels(options) == 0;
}

}  // namespace

GradientReducer::GradientReducer(const Transformer& model, const FlatPartition& partition,
                                 const Communicator& data_parallel, const Options& options)
    : model_(model),
      partition_(partition),
      group_(data_parallel),
      options_(effective(options, data_parallel.size())) {
  const DType dtype = wide(model.dtype());
  partial_sums_ = Buffer({num_levels(options_), partition.num_elements()}, dtype, model.device());
  if (keeps_shard()) shard_ = Buffer({partition.num_owned()}, dtype, model.device());
}

GradientStorage GradientReducer::storage(const Options& options, int64_t data_parallel_size) {
  const Options used = effective(options, data_parallel_size);
  if (used.zero_stage == 2) return GradientStorage::kTransient;
  return num_levels(used) > 0 ? GradientStorage::kPerPass : GradientStorage::kAccumulated;
}

int64_t GradientReducer::num_reductions(const Options& options, int64_t data_parallel_size) {
  return sends_every_part(effective(options, data_parallel_size)) ? options.parts_per_rank : 1;
}

int64_t GradientReducer::num_final_passes(const Options& options, int64_t data_parallel_size) {
  if (num_levels(options) > 0) return options.parts_per_rank;
  return num_reductions(options, data_parallel_size);
}

int64_t GradientReducer::bytes(const Options& options, const FlatPartition& partition,
                               DType dtype) {
  const Options used = effective(options, partition.num_ranks());
  const int64_t shard = used.zero_stage == 2 ? partition.num_owned() : 0;
  return (num_levels(used) * partition.num_elements() + shard) * size_in_bytes(wide(dtype));
}

void GradientReducer::begin_step(const Stream& stream) {
  if (keeps_shard()) fill_zero(shard_.view(), stream);
}

PassHooks GradientReducer::hooks(int64_t part, const Stream& stream) {
  PassHooks hooks;
  const bool is_last = part + 1 == options_.parts_per_rank;
  const bool in_tree = num_levels(options_) > 0;
  const bool sends = sends_every_part(options_);
  if (keeps_shard()) {
    hooks.gradient_reused = [this, &stream](int64_t, const TensorView& memory) {
      complete_in(memory, stream);
    };
  }
  if (in_tree || sends || (is_last && (group_.size() > 1 || model_.shares_gradients()))) {
    hooks.gradient_final = [=, this, &stream](int64_t region, const TensorView& gradient) {
      for (const UnderWay& bucket : under_way_) bucket.collective->poll();
      if (in_tree) add_in_tree(region, gradient, part, stream);
      if ((is_last || sends) && group_.size() > 1) start(region, gradient, stream);
    };
  }
  return hooks;
}

/// A binary counter: partial sum l waits while bit l of the number of parts so far is set. After
/// the last part `gradient` is the sum of all.
void GradientReducer::add_in_tree(int64_t region, const TensorView& gradient, int64_t part,
                                  const Stream& stream) {
  const FlatRange& range = model_.layout().regions()[region];
  const auto partial_sum = [&](int64_t level) {
    return partial_sums_.view().slice(level).rows(range.begin, range.end);
  };
  int64_t level = 0;
  for (; (part >> level) & 1; ++level) add(gradient, partial_sum(level), stream);
  if (part + 1 < options_.parts_per_rank) copy(partial_sum(level), gradient, stream);
}

void GradientReducer::start(int64_t region, const TensorView& gradient, const Stream& stream) {
  const ProfileRange range("start reduction");
  const int64_t begin = model_.layout().regions()[region].begin;
  for (const Bucket& bucket : partition_.buckets_of(region)) {
    const auto part = [&](const FlatRange& r) {
      return gradient.rows(r.begin - begin, r.end - begin);
    };
    const TensorView memory = part(bucket.range), mine = part(bucket.owned);
    auto collective = is_sharded()
                          ? group_.start_reduce_scatter(mine, memory, ReduceOp::kSum, stream)
                          : group_.start_all_reduce(memory, ReduceOp::kSum, stream);
    under_way_.push_back({std::move(collective), memory, mine, &bucket});
  }
}

void GradientReducer::complete(const UnderWay& bucket, const Stream& stream) {
  bucket.collective->wait(stream);
  if (keeps_shard()) add(gradient(*bucket.bucket), bucket.reduced, stream);
}

/// What is under way in this memory.
void GradientReducer::complete_in(const TensorView& memory, const Stream& stream) {
  const char* begin = static_cast<const char*>(memory.data);
  std::erase_if(under_way_, [&](const UnderWay& bucket) {
    const char* data = static_cast<const char*>(bucket.memory.data);
    if (data < begin || data >= begin + memory.bytes()) return false;
    complete(bucket, stream);
    return true;
  });
}

void GradientReducer::finish(const Stream& stream) {
  for (const UnderWay& bucket : under_way_) complete(bucket, stream);
  under_way_.clear();
}

TensorView GradientReducer::gradient(const Bucket& bucket) const {
  if (keeps_shard()) {
    return shard_.view().rows(bucket.owned_offset, bucket.owned_offset + bucket.owned.size());
  }
  const FlatRange& range = is_sharded() ? bucket.owned : bucket.range;
  return model_.gradients().rows(range.begin, range.end);
}

}  // namespace mirabelle
