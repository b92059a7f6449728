// The whole model in every dtype of both backends against the same model in float64 on the CPU.
#include <cmath>

#include "mirabelle/kernels/reduce.h"
#include "mirabelle/model/batch_queue.h"
#include "mirabelle/model/decoder.h"
#include "mirabelle/training/micro_step.h"
#include "support/backends.h"
#include "support/tiny_model.h"

namespace mirabelle::testing {
namespace {

constexpr int64_t kVocab = 203, kMaxTokens = 400;

struct Case {
  Backend backend;  // with the relative error of losses and outputs; gradients have ten times it
  int64_t num_heads;
  bool is_qwen = false;
};
void PrintTo(const Case& c, std::ostream* out) {
  PrintTo(c.backend, out);
  *out << "_" << c.num_heads << "_heads" << (c.is_qwen ? "_qwen" : "");
}

double norm(const std::vector<double>& x) { return std::sqrt(dot(x, x)); }

/// |actual - expected| / |expected|
double relative_error(std::vector<double> actual, const std::vector<double>& expected) {
  for (size_t i = 0; i < actual.size(); ++i) actual[i] -= expected[i];
  return norm(actual) / norm(expected);
}

class ModelPrecisionTest : public ::testing::TestWithParam<Case> {
 protected:
  ModelPrecisionTest() : backend_(GetParam().backend) {}
  void SetUp() override {
    if (!is_available()) GTEST_SKIP() << "no GPU";
  }
  static bool is_available() {
    return GetParam().backend.device == Device::kCpu || num_cuda_devices() > 0;
  }

  static TransformerConfig config() {
    TransformerConfig config = GetParam().is_qwen ? tiny_qwen_config() : tiny_config();
    if (GetParam().is_qwen) config.explicit_head_dim = 64;
    config.hidden_size = 128;
    config.num_heads = GetParam().num_heads;
    config.num_kv_heads = GetParam().num_heads / 2;
    config.ffn_hidden_size = 192;
    config.dropout = 0.2;
    config.initializer_range = 0.05;
    return config;
  }

  static Transformer make_model(DType dtype, Device device, const LossOptions& loss = {}) {
    Transformer::Limits limits = {kMaxTokens, kMaxTokens, /*training=*/true};
    limits.loss = loss;
    return Transformer(config(), kVocab, 256, dtype, limits, device);
  }
  static LossOptions all_loss_options() { return {{1, 64, 65, kVocab}, 0.1, true}; }

  /// The same random weights, as the backend's dtype holds them, in both models.
  void set_weights(const Transformer& expected, const Transformer& actual) {
    initialize_weights(expected.weights(), expected.layout(), config(), expected.vocab_size(), 9);
    vary_vectors(expected.weights().as<double>(), expected.layout());
    const Buffer rounded =
        make_tensor(backend_, expected.weights().shape, to_doubles(expected.weights()));
    copy(actual.weights(), rounded.view(), stream_);
    const std::vector<double> values = to_doubles(rounded.view());
    std::copy(values.begin(), values.end(), expected.weights().as<double>());
  }

  const Backend backend_;
  const Stream stream_{is_available() ? backend_.device : Device::kCpu};
};

TEST_P(ModelPrecisionTest, LossAndGradientsAreThoseInFloat64) {
  Transformer expected = make_model(DType::kFloat64, Device::kCpu);
  Transformer actual = make_model(backend_.dtype, backend_.device);
  set_weights(expected, actual);
  const TinyBatch batch({1, 7, 64, 65, 150}, kVocab, 3);
  const double scale = 1.0 / static_cast<double>(batch.tokens.size());
  expected.begin_step(scale, 5, 11, Stream());
  expected.forward_backward(batch.view(), {}, Stream());
  const double expected_loss = *expected.loss_sum().as<double>();
  BatchQueue batches(backend_.device, kMaxTokens, /*max_sequence_tokens=*/200);
  const auto run = [&] {
    actual.begin_step(scale, 5, 11, stream_);
    batches.push(batch.view());
    actual.forward_backward(batches.pop(stream_), {}, stream_);
    return to_doubles(actual.loss_sum())[0];
  };
  const double loss = run();
  const std::vector<double> gradients = to_doubles(actual.gradients());
  EXPECT_NEAR(loss / expected_loss, 1, backend_.tolerance);
  EXPECT_LT(relative_error(gradients, to_doubles(expected.gradients())), 10 * backend_.tolerance);

  EXPECT_EQ(run(), loss);  // the same bits every time
  EXPECT_EQ(to_doubles(actual.gradients()), gradients);
}

TEST_P(ModelPrecisionTest, WeightedSmoothedLossesAndTheirGradientsAreThoseInFloat64) {
  Transformer expected = make_model(DType::kFloat64, Device::kCpu, all_loss_options());
  Transformer actual = make_model(backend_.dtype, backend_.device, all_loss_options());
  set_weights(expected, actual);
  const TinyBatch batch({1, 7, 64, 65, 150}, kVocab, 3);
  BatchQueue batches(backend_.device, kMaxTokens, /*max_sequence_tokens=*/200);
  batches.push(batch.view());
  const auto run = [&](Transformer& model, const PackedBatch& view, const Stream& stream) {
    model.begin_step(0.01, 5, 11, stream);
    model.set_level_weights({0.5, 4, 1.25}, stream);
    model.forward_backward(view, {}, stream);
  };
  run(expected, batch.view(), Stream());
  run(actual, batches.pop(stream_), stream_);
  expect_near(to_doubles(actual.loss_sums()), to_doubles(expected.loss_sums()), backend_.tolerance,
              "loss_sums");
  EXPECT_LT(relative_error(to_doubles(actual.gradients()), to_doubles(expected.gradients())),
            10 * backend_.tolerance);
}

// On a GPU the first pass of a shape runs kernel by kernel, the second is recorded, the third only
// launched.
TEST_P(ModelPrecisionTest, ARecordedMicroStepGivesTheSameBits) {
  Transformer expected = make_model(DType::kFloat64, Device::kCpu);
  Transformer actual = make_model(backend_.dtype, backend_.device, all_loss_options());
  set_weights(expected, actual);
  const TinyBatch batches[] = {TinyBatch({1, 7, 64, 65, 150}, kVocab, 3),
                               TinyBatch({30, 90}, kVocab, 4)};
  const auto run = [&](bool use_graph) {
    BatchQueue queue(backend_.device, kMaxTokens, /*max_sequence_tokens=*/200);
    MicroStep micro_step(actual, use_graph);
    std::vector<std::vector<double>> results;
    for (int64_t step = 0; step < 4; ++step) {
      actual.begin_step(1.0 / static_cast<double>(step + 1), 5, step, stream_);
      actual.set_level_weights({1.0 + static_cast<double>(step), 1, 0.5}, stream_);
      for (const TinyBatch& batch : batches) {
        queue.push(batch.view());
        micro_step.run(queue.pop(stream_), {}, stream_);
      }
      results.push_back(to_doubles(actual.gradients()));
      for (const double sum : to_doubles(actual.loss_sums())) results.back().push_back(sum);
    }
    return results;
  };
  const auto kernel_by_kernel = run(false), recorded = run(true);
  for (size_t step = 0; step < recorded.size(); ++step) {
    EXPECT_EQ(recorded[step], kernel_by_kernel[step]) << "step " << step;
  }
  EXPECT_NE(recorded[2], recorded[3]);  // another scale, other masks
}

TEST_P(ModelPrecisionTest, DecodesAsInFloat64) {
  Transformer expected = make_model(DType::kFloat64, Device::kCpu);
  Transformer actual = make_model(backend_.dtype, backend_.device);
  set_weights(expected, actual);
  const Decoder::Limits limits = {.max_prefix_tokens = 100,
                                  .max_sequence_tokens = 80,
                                  .max_users = 3,
                                  .max_beams = 105,
                                  .max_steps = 3};
  Decoder reference(expected, limits), decoder(actual, limits);
  std::vector<int32_t> tokens(90);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * 37 % kVocab);
  const std::vector<int32_t> offsets = {0, 1, 71, 90};
  const auto compare = [&](const TensorView& rows, const TensorView& expected_rows) {
    EXPECT_LT(relative_error(to_doubles(rows), to_doubles(expected_rows)), backend_.tolerance);
  };
  compare(decoder.prefill(tokens, offsets, stream_), reference.prefill(tokens, offsets, Stream()));
  int32_t width = 26, width_before = 1;  // beams of a user
  for (int32_t step = 0; step < 3; ++step) {
    std::vector<int32_t> newest(3 * width), parents(3 * width);
    for (int32_t row = 0; row < 3 * width; ++row) {
      newest[row] = (row * 11 + step) % static_cast<int32_t>(kVocab);
      parents[row] = row / width * width_before + (row * 7 + step) % width_before;
    }
    const Shape shape = {3, width};
    const Buffer newest_on_device = make_int_tensor(backend_, newest);
    const Buffer parents_on_device = make_int_tensor(backend_, parents);
    compare(
        decoder.step(newest_on_device.view().reshaped(shape),
                     parents_on_device.view().reshaped(shape), stream_),
        reference.step(view_of(newest.data(), shape), view_of(parents.data(), shape), Stream()));
    width_before = width;
    width = 35;  // more than a tile
  }
}

// On the GPU of heads that the tensor cores take and that they do not.
INSTANTIATE_TEST_SUITE_P(
    Backends, ModelPrecisionTest,
    ::testing::Values(Case{{Device::kCpu, DType::kFloat32, 1e-6}, 4},
                      Case{{Device::kCpu, DType::kFloat32, 1e-6}, 4, true},
                      Case{{Device::kCpu, DType::kBFloat16, 2e-3}, 4},
                      Case{{Device::kCpu, DType::kBFloat16, 2e-3}, 4, true},
                      Case{{Device::kCpu, DType::kBFloat16, 2e-3}, 16} MIRABELLE_CUDA_BACKENDS(
                          Case{{Device::kCuda, DType::kFloat32, 1e-5}, 4},
                          Case{{Device::kCuda, DType::kFloat32, 1e-5}, 4, true},
                          Case{{Device::kCuda, DType::kFloat32, 1e-5}, 16},
                          Case{{Device::kCuda, DType::kBFloat16, 1e-2}, 4},
                          Case{{Device::kCuda, DType::kBFloat16, 1e-2}, 4, true},
                          Case{{Device::kCuda, DType::kBFloat16, 1e-2}, 2},
                          Case{{Device::kCuda, DType::kBFloat16, 1e-2}, 16})),
    ::testing::PrintToStringParamName());

}  // namespace
}  // namespace mirabelle::testing
