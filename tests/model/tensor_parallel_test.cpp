// Runs on 1, 2 and 4 ranks, which share one model.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "mirabelle/model/decoder.h"
#include "mirabelle/model/transformer.h"
#include "support/logical_tensors.h"
#include "support/tiny_model.h"

namespace mirabelle {
namespace {

using testing::assemble;
using testing::LogicalTensors;
using testing::TinyBatch;

constexpr int64_t kVocab = 21, kPaddedVocab = 32;
constexpr int64_t kShards = 4;  // of the reproducible mode

struct Case {
  const char* name;
  int64_t num_kv_heads;
  bool tie_embeddings;
  bool sequence_parallel;
  Recompute recompute;
  bool is_qwen = false;
};
void PrintTo(const Case& test_case, std::ostream* out) { *out << test_case.name; }

/// A model of this rank's share and what it makes of a batch.
class TensorParallelTest : public ::testing::TestWithParam<Case> {
 protected:
  TensorParallelTest() : world_(make_mpi_communicator()), self_(make_self_communicator()) {}

  static TransformerConfig config(double dropout = 0.3) {
    TransformerConfig config =
        GetParam().is_qwen ? testing::tiny_qwen_config() : testing::tiny_config();
    config.num_kv_heads = GetParam().num_kv_heads;
    config.tie_embeddings = GetParam().tie_embeddings;
    config.dropout = dropout;
    return config;
  }
  /// Of all ranks, or of this one by itself.
  ModelShare share(const Communicator& group, bool reproducible) const {
    ModelShare share;
    share.num_shards = reproducible ? kShards : group.size();
    share.tensor_parallel_size = group.size();
    share.tensor_parallel_rank = group.rank();
    share.reproducible = reproducible;
    share.sequence_parallel = GetParam().sequence_parallel;
    return share;
  }
  Transformer make_model(const Communicator& group, DType dtype, bool reproducible,
                         bool training = true, const LossOptions& loss = {},
                         double dropout = 0.3) const {
    Transformer model(config(dropout), kVocab, kPaddedVocab, dtype,
                      {40, 40, training, GetParam().recompute, GradientStorage::kPerPass, loss},
                      Device::kCpu, share(group, reproducible), &group);
    // float32 numbers in any dtype, so that the models are the same
    std::vector<float> values(model.layout().num_elements());
    initialize_weights(view_of(values), model.layout(), config(), model.vocab_size(), 9);
    testing::vary_vectors(values.data(), model.layout());
    if (dtype == DType::kFloat32) {
      std::copy(values.begin(), values.end(), model.weights().as<float>());
    } else {
      std::copy(values.begin(), values.end(), model.weights().as<double>());
    }
    return model;
  }
  /// 28 tokens, a multiple of all numbers of shards.
  TinyBatch batch() const { return TinyBatch({1, 7, 5, 15}, kVocab, 3); }

  static double total_loss(Transformer& model, const TinyBatch& batch) {
    PassHooks hooks;
    hooks.gradient_final = [](int64_t, const TensorView&) {};
    model.begin_step(1.0, /*seed=*/5, /*step=*/11, Stream());
    model.forward_backward(batch.view(), hooks, Stream());
    return *model.loss_sum().as<double>();
  }
  LogicalTensors gradients(const Transformer& model, const Communicator& group) const {
    return model.dtype() == DType::kFloat32
               ? assemble(model.layout(), model.gradients().as<float>(), group)
               : assemble(model.layout(), model.gradients().as<double>(), group);
  }
  /// Compares the model's gradients, of a pass that was just done, with central differences of
  /// loss(), which is collective: some elements of every tensor.
  template <typename Loss>
  void expect_gradients_of(Transformer& model, Loss loss) const {
    const std::vector<double> gradient(
        model.gradients().as<double>(),
        model.gradients().as<double>() + model.gradients().num_elements());
    double* weights = model.weights().as<double>();
    double largest_gradient = 0;
    // Element k of every logical tensor is moved wherever a rank or shard holds it.
    const LogicalTensors whole = assemble(model.layout(), gradient.data(), *world_);
    for (const auto& [name, tensor] : whole) {
      const auto size = static_cast<int64_t>(tensor.size());
      for (int64_t k = 0; k < 3; ++k) {
        const int64_t element = (k * 7919 + 13) % (name.find("embed") != std::string::npos ||
                                                           name.find("head") != std::string::npos
                                                       ? kVocab * config().hidden_size
                                                       : size);
        std::vector<int64_t> places;
        for (const LogicalPiece& piece : model.layout().pieces()) {
          const int64_t columns = piece.shape.rank() == 1 ? 1 : piece.shape[1];
          const int64_t row = element / columns - piece.row_begin;
          const int64_t column = element % columns - piece.column_begin;
          if (piece.name == name && 0 <= row && row < piece.num_rows && 0 <= column &&
              column < piece.num_columns) {
            places.push_back(piece.offset + row * piece.num_columns + column);
          }
        }
        const double h = 1e-5;
        const auto loss_at = [&](double shift) {
          for (int64_t place : places) weights[place] += shift;
          const double value = loss();
          for (int64_t place : places) weights[place] -= shift;
          return value;
        };
        const double slope = (loss_at(h) - loss_at(-h)) / (2 * h);
        EXPECT_NEAR(tensor[element], slope, 2e-7 * (1 + std::abs(tensor[element])))
            << name << " element " << element << " of " << model.layout().share().num_shards
            << " shards";
        for (int64_t place : places) EXPECT_EQ(gradient[place], tensor[element]) << name;
        largest_gradient = std::max(largest_gradient, std::abs(slope));
      }
    }
    EXPECT_GT(largest_gradient, 0.1);
  }
  /// log softmax of all rows, by row.
  static std::vector<double> log_probabilities(Transformer& model, const TinyBatch& batch) {
    const auto num_tokens = static_cast<int64_t>(batch.tokens.size());
    const Buffer gathered({num_tokens, model.config().hidden_size}, DType::kFloat64);
    const TensorView hidden = model.tensor_parallel().gather_tokens(
        gathered.view(), model.forward(batch.view(), Stream()), Stream());
    Arena sizes(Device::kCpu);
    model.plan_logit_shards(sizes, num_tokens, DType::kFloat64);
    Arena memory(sizes.bytes_used(), Device::kCpu);
    std::vector<double> rows(num_tokens * kVocab);
    model.logits(view_of(rows.data(), {num_tokens, kVocab}), hidden,
                 model.plan_logit_shards(memory, num_tokens, DType::kFloat64), Stream());
    for (int64_t row = 0; row < num_tokens; ++row) {
      double sum = 0;
      for (int64_t i = 0; i < kVocab; ++i) sum += std::exp(rows[row * kVocab + i]);
      for (int64_t i = 0; i < kVocab; ++i) rows[row * kVocab + i] -= std::log(sum);
    }
    return rows;
  }
  /// The same on all ranks, so that they come to one verdict.
  int64_t largest(int64_t value) const {
    world_->all_reduce(view_of(&value, {1}), ReduceOp::kMax, Stream());
    return value;
  }
  static double norm_of_difference(const LogicalTensors& a, const LogicalTensors& b) {
    double squares = 0;
    for (const auto& [name, tensor] : a) {
      const std::vector<double>& other = b.at(name);
      for (size_t i = 0; i < tensor.size(); ++i) {
        squares += (tensor[i] - other[i]) * (tensor[i] - other[i]);
      }
    }
    return std::sqrt(squares);
  }

  std::unique_ptr<Communicator> world_, self_;
};

TEST_P(TensorParallelTest, GradientsMatchFiniteDifferencesInFloat64) {
  for (const bool reproducible : {false, true}) {
    Transformer model = make_model(*world_, DType::kFloat64, reproducible);
    const TinyBatch tokens = batch();
    total_loss(model, tokens);
    expect_gradients_of(model, [&] { return total_loss(model, tokens); });
  }
}

TEST_P(TensorParallelTest, GradientsOfWeightedSmoothedLossesMatchFiniteDifferencesInFloat64) {
  const std::vector<int32_t> bounds = {1, 7, 10, kVocab};  // token 0 is of no level
  const std::vector<double> weights = {0.5, 2, 1.25};
  const double smoothing = 0.2;
  TinyBatch tokens = batch();
  tokens.targets[3] = -1;
  for (const bool reproducible : {false, true}) {
    Transformer model = make_model(*world_, DType::kFloat64, reproducible, true,
                                   {bounds, smoothing, true}, /*dropout=*/0);
    std::vector<double> plain(4);  // over all targets, then by level
    const auto objective = [&] {
      const std::vector<double> rows = log_probabilities(model, tokens);
      double total = 0;
      plain.assign(4, 0);
      for (size_t row = 0; row < tokens.targets.size(); ++row) {
        const int32_t target = tokens.targets[row];
        if (target < 0) continue;
        const double loss = -rows[row * kVocab + target];
        plain[0] += loss;
        if (target == 0) {
          total += loss;
          continue;
        }
        const int level = target < 7 ? 0 : target < 10 ? 1 : 2;
        plain[1 + level] += loss;
        double mean = 0;  // over the level
        for (int32_t i = bounds[level]; i < bounds[level + 1]; ++i) mean -= rows[row * kVocab + i];
        mean /= bounds[level + 1] - bounds[level];
        total += weights[level] * ((1 - smoothing) * loss + smoothing * mean);
      }
      return total;
    };
    model.set_level_weights(weights, Stream());
    total_loss(model, tokens);
    const double* sums = model.loss_sums().as<double>();
    const std::vector<double> reported(sums, sums + 4);
    expect_gradients_of(model, objective);
    objective();
    for (int i = 0; i < 4; ++i) EXPECT_NEAR(reported[i], plain[i], 1e-10) << i;
  }
}

TEST_P(TensorParallelTest, ReproducibleGradientsAreTheBitsOfOneRank) {
  Transformer model = make_model(*world_, DType::kFloat32, true);
  Transformer alone = make_model(*self_, DType::kFloat32, true);
  const TinyBatch tokens = batch();
  const double loss = total_loss(model, tokens), expected_loss = total_loss(alone, tokens);
  EXPECT_EQ(largest(std::memcmp(&loss, &expected_loss, sizeof loss) != 0), 0)
      << loss << " and " << expected_loss;
  const LogicalTensors actual = gradients(model, *world_), expected = gradients(alone, *self_);
  for (const auto& [name, tensor] : expected) {
    const bool same =
        std::memcmp(actual.at(name).data(), tensor.data(), tensor.size() * sizeof(double)) == 0;
    EXPECT_EQ(largest(!same), 0) << name;
  }
}

TEST_P(TensorParallelTest, FastGradientsAreAtMostTwiceAsInexactAsOneRanks) {
  const TinyBatch tokens = batch();
  Transformer exact = make_model(*self_, DType::kFloat64, false);
  Transformer serial = make_model(*self_, DType::kFloat32, false);
  Transformer model = make_model(*world_, DType::kFloat32, false);
  total_loss(exact, tokens);
  total_loss(serial, tokens);
  total_loss(model, tokens);
  const LogicalTensors reference = gradients(exact, *self_);
  const double error = norm_of_difference(gradients(model, *world_), reference);
  const double serial_error = norm_of_difference(gradients(serial, *self_), reference);
  EXPECT_GT(serial_error, 0);
  EXPECT_LE(error, 2 * serial_error);
}

TEST_P(TensorParallelTest, DecodesTheSameOnEveryRankAndInTheReproducibleModeOnAnyNumber) {
  for (const bool reproducible : {false, true}) {
    const Transformer model = make_model(*world_, DType::kFloat32, reproducible);
    const Transformer alone = make_model(*self_, DType::kFloat32, reproducible);
    const Decoder::Limits limits = {20, 12, 2, 6, 2};
    Decoder decoder(model, limits), serial(alone, limits);
    const std::vector<int32_t> tokens = {0, 3, 7, 11, 0, 20}, offsets = {0, 4, 6};
    const std::vector<int32_t> codes = {1, 2, 3, 4, 5, 6}, parents = {0, 2, 1, 3, 3, 5};
    const auto view = [&](const std::vector<int32_t>& values) {
      return view_of(values).reshaped({2, 3});
    };
    const auto compare = [&](const TensorView& actual, const TensorView& expected) {
      int64_t num_different = 0;
      double difference = 0;
      const Buffer of_root(actual.shape, actual.dtype);
      std::memcpy(of_root.data(), actual.data, actual.bytes());
      world_->broadcast(of_root.view(), 0, Stream());
      num_different += std::memcmp(of_root.data(), actual.data, actual.bytes()) != 0;
      if (reproducible) {
        num_different += std::memcmp(expected.data, actual.data, actual.bytes()) != 0;
      }
      for (int64_t i = 0; i < actual.num_elements(); ++i) {
        difference =
            std::max<double>(difference, std::abs(actual.as<float>()[i] - expected.as<float>()[i]));
      }
      EXPECT_EQ(largest(num_different), 0);
      EXPECT_LT(difference, 1e-5);
    };
    compare(decoder.prefill(tokens, offsets, Stream()), serial.prefill(tokens, offsets, Stream()));
    compare(decoder.step(view(codes), {}, Stream()), serial.step(view(codes), {}, Stream()));
    compare(decoder.step(view(codes), view(parents), Stream()),
            serial.step(view(codes), view(parents), Stream()));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Models, TensorParallelTest,
    ::testing::Values(Case{"plain", 4, true, false, Recompute::kNone},
                      Case{"sequence_parallel", 4, false, true, Recompute::kNone},
                      Case{"shared_key_heads", 2, true, false, Recompute::kAttention},
                      Case{"one_key_head_sequence_parallel", 1, true, true, Recompute::kAttention},
                      Case{"recomputed_blocks", 2, false, true, Recompute::kBlock},
                      Case{"qwen", 4, true, false, Recompute::kNone, true},
                      Case{"qwen_shared_key_heads", 2, false, false, Recompute::kAttention, true},
                      Case{"qwen_one_key_head_sequence_parallel", 1, true, true, Recompute::kBlock,
                           true}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace mirabelle
