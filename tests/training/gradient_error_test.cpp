// Runs on 8 ranks: what the fast mode promises. Its gradients, whose sums every layout takes in an
// order of its own, are at most twice as far from float64's as those of one rank.

#include <gtest/gtest.h>

#include <cmath>
#include <sstream>

#include "mirabelle/comm/parallel_context.h"
#include "mirabelle/training/gradient_reducer.h"
#include "support/logical_tensors.h"
#include "support/tiny_model.h"

namespace mirabelle {
namespace {

using testing::LogicalTensors;
using testing::TinyBatch;

constexpr int64_t kVocab = 21, kPaddedVocab = 32, kParts = 8;

struct Layout {
  int64_t tensor, data, zero_stage;
  bool sequence_parallel;
};
void PrintTo(const Layout& l, std::ostream* out) {
  *out << "tensor" << l.tensor << "_data" << l.data << "_zero" << l.zero_stage
       << (l.sequence_parallel ? "_sequence_parallel" : "");
}

class GradientErrorTest : public ::testing::TestWithParam<Layout> {
 protected:
  GradientErrorTest() : world_(make_mpi_communicator()), self_(make_self_communicator()) {}

  /// The gradient of a step of kParts parts, on every rank of the group.
  static LogicalTensors gradient(const Communicator& group, const Layout& layout, DType dtype) {
    TransformerConfig config = testing::tiny_config();
    config.num_kv_heads = 2;
    config.dropout = 0.3;
    const ParallelContext ranks(group, layout.tensor);
    ModelShare share;
    share.num_shards = share.tensor_parallel_size = layout.tensor;
    share.tensor_parallel_rank = ranks.tensor().rank();
    share.sequence_parallel = layout.sequence_parallel;
    share.flat_multiple = FlatPartition::flat_multiple(layout.data);
    const GradientReducer::Options options = {.zero_stage = layout.zero_stage,
                                              .reproducible = false,
                                              .parts_per_rank = kParts / layout.data};
    Transformer::Limits limits = {40, 40, true};
    limits.gradients = GradientReducer::storage(options, layout.data);
    Transformer model(config, kVocab, kPaddedVocab, dtype, limits, Device::kCpu, share,
                      &ranks.tensor());
    std::vector<float> values(model.layout().num_elements());
    initialize_weights(view_of(values), model.layout(), config, model.vocab_size(), 9);
    visit(model.weights(),
          [&](auto* weights) { std::copy(values.begin(), values.end(), weights); });

    const FlatPartition partition(model.layout(), layout.data, ranks.data().rank(), 256);
    GradientReducer reducer(model, partition, ranks.data(), options);
    const Stream stream;
    model.begin_step(1.0 / (28 * kParts), 5, 11, stream);
    reducer.begin_step(stream);
    for (int64_t part = 0; part < options.parts_per_rank; ++part) {
      const int64_t global_part = ranks.data().rank() * options.parts_per_rank + part;
      const TinyBatch batch({1, 7, 5, 15}, kVocab, 100 + global_part);
      model.forward_backward(batch.view(), reducer.hooks(part, stream), stream);
    }
    reducer.finish(stream);

    std::vector<double> flat(model.layout().num_elements());
    for (const Bucket& bucket : partition.buckets()) {
      const FlatRange& range = reducer.is_sharded() ? bucket.owned : bucket.range;
      visit(reducer.gradient(bucket), [&](auto* found) {
        std::copy(found, found + range.size(), flat.begin() + range.begin);
      });
    }
    if (reducer.is_sharded()) ranks.data().all_reduce(view_of(flat), ReduceOp::kSum, stream);
    return testing::assemble(model.layout(), flat.data(), ranks.tensor());
  }

  template <typename Body>
  static void visit(const TensorView& x, Body body) {
    x.dtype == DType::kFloat32 ? body(x.as<float>()) : body(x.as<double>());
  }

  static double distance(const LogicalTensors& a, const LogicalTensors& b) {
    double squares = 0;
    for (const auto& [name, tensor] : b) {
      for (size_t i = 0; i < tensor.size(); ++i) {
        squares += std::pow(a.at(name)[i] - tensor[i], 2);
      }
    }
    return std::sqrt(squares);
  }

  std::unique_ptr<Communicator> world_, self_;
};

TEST_P(GradientErrorTest, IsAtMostTwiceThatOfOneRank) {
  const Layout& layout = GetParam();
  const bool takes_part = world_->rank() < layout.tensor * layout.data;
  const auto group = world_->split(takes_part ? 0 : 1, world_->rank(), "layout");
  if (!takes_part) return;
  static const LogicalTensors exact = gradient(*self_, {1, 1, 0, false}, DType::kFloat64);
  static const double serial = distance(gradient(*self_, {1, 1, 0, false}, DType::kFloat32), exact);
  const double split = distance(gradient(*group, layout, DType::kFloat32), exact);
  EXPECT_GT(serial, 0);
  EXPECT_LE(split, 2 * serial);
  // and the layout computes the same thing at all
  EXPECT_LT(distance(gradient(*group, layout, DType::kFloat64), exact), 1e-12);
}

INSTANTIATE_TEST_SUITE_P(Layouts, GradientErrorTest,
                         ::testing::Values(Layout{1, 2, 0, false}, Layout{1, 4, 1, false},
                                           Layout{1, 8, 0, false}, Layout{1, 8, 2, false},
                                           Layout{2, 1, 0, false}, Layout{2, 1, 0, true},
                                           Layout{2, 2, 1, true}, Layout{2, 2, 2, false},
                                           Layout{2, 4, 2, true}, Layout{4, 1, 0, false},
                                           Layout{4, 2, 0, true}, Layout{4, 2, 2, true}),
                         [](const auto& info) {
                           std::ostringstream name;
                           PrintTo(info.param, &name);
                           return name.str();
                         });

}  // namespace
}  // namespace mirabelle
