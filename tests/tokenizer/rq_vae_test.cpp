#include "mirabelle/tokenizer/rq_vae.h"

#include <map>

#include "support/backends.h"
#include "support/devices.h"
#include "support/errors.h"

namespace mirabelle::testing {
namespace {

using Values = std::vector<double>;

const std::vector<FeatureSource> kSources = {{"title", 3, 1}, {"image", 2, 0.5}};
const std::vector<int64_t> kLevels = {4, 3};
constexpr int64_t kRows = 5, kItems = 3;
const std::vector<int32_t> kNumKept = {2, 1, 2, 1, 2};

RqVaeConfig small_config() {
  RqVaeConfig config;
  config.hidden_sizes = {5, 4};
  config.source_size = 3;
  config.codebook_dim = 3;
  config.contrastive_weight = 1;
  config.contrastive_size = 2;
  return config;
}

// --- the oracle: rows of doubles, from the formulas -------------------------------------------

using Rows = std::vector<Values>;

Values part(const Values& x, int64_t begin, int64_t end) {
  return {x.begin() + begin, x.begin() + end};
}

class Oracle {
 public:
  Oracle(const RqVaeLayout& layout, const RqVaeConfig& config) : config_(config) {
    for (const auto& tensor : layout.tensors()) tensors_[tensor.name] = &tensor;
  }
  /// x times the transpose of the matrix `name`.
  Values product(const Values& weights, const std::string& name, const Values& x) const {
    const RqVaeLayout::Tensor& matrix = *tensors_.at(name);
    EXPECT_EQ(static_cast<int64_t>(x.size()), matrix.shape[1]) << name;
    Values y(matrix.shape[0]);
    for (size_t i = 0; i < y.size(); ++i) {
      for (size_t j = 0; j < x.size(); ++j) {
        y[i] += weights[matrix.offset + i * x.size() + j] * x[j];
      }
    }
    return y;
  }
  Values mlp(const Values& weights, const std::string& name, Values x) const {
    for (int64_t layer = 0;; ++layer) {
      const std::string prefix = name + "." + std::to_string(layer);
      x = product(weights, prefix + ".weight", x);
      const auto bias = tensors_.find(prefix + ".bias");
      if (bias == tensors_.end()) return x;
      for (size_t i = 0; i < x.size(); ++i) {
        const double sum = x[i] + weights[bias->second->offset + i];
        x[i] = sum / (1 + std::exp(-sum));
      }
    }
  }
  Values latent(const Values& weights, const Values& features) const {
    Values z(config_.codebook_dim);
    int64_t begin = 0;
    for (size_t m = 0; m < kSources.size(); ++m) {
      const Values x = part(features, begin, begin + kSources[m].dim);
      begin += kSources[m].dim;
      const Values y = product(weights, "projections." + std::to_string(m),
                               mlp(weights, "encoders." + std::to_string(m), x));
      for (size_t i = 0; i < z.size(); ++i) z[i] += y[i];
    }
    return z;
  }
  Values code(const Values& weights, int64_t level, int64_t row) const {
    const int64_t dim = config_.codebook_dim;
    const int64_t begin = tensors_.at("codebooks." + std::to_string(level))->offset + row * dim;
    return part(weights, begin, begin + dim);
  }
  int64_t nearest(const Values& weights, int64_t level, const Values& residual) const {
    int64_t best = 0;
    for (int64_t row = 1; row < kLevels[level]; ++row) {
      if (squared_distance(code(weights, level, row), residual) <
          squared_distance(code(weights, level, best), residual)) {
        best = row;
      }
    }
    return best;
  }
  static double squared_distance(const Values& a, const Values& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
    return sum;
  }
  static Values minus(Values a, const Values& b) {
    for (size_t i = 0; i < a.size(); ++i) a[i] -= b[i];
    return a;
  }

 private:
  RqVaeConfig config_;
  std::map<std::string, const RqVaeLayout::Tensor*> tensors_;
};

/// What stop-gradients hold at the weights of a model.
struct Captured {
  std::vector<std::vector<int64_t>> codes;  // [row][level]
  std::vector<Rows> residuals;              // [row][level + 1]
  Rows quantized;                           // [row]
};

Captured capture(const Oracle& oracle, const Values& weights, const Rows& features) {
  Captured captured;
  for (size_t row = 0; row < features.size(); ++row) {
    Rows residuals = {oracle.latent(weights, features[row])};
    std::vector<int64_t> codes;
    Values quantized(residuals[0].size());
    for (size_t level = 0; level < kLevels.size(); ++level) {
      codes.push_back(oracle.nearest(weights, level, residuals.back()));
      const Values code = oracle.code(weights, level, codes.back());
      residuals.push_back(Oracle::minus(residuals.back(), code));
      for (size_t i = 0; i < code.size() && static_cast<int32_t>(level) < kNumKept[row]; ++i) {
        quantized[i] += code[i];
      }
    }
    captured.codes.push_back(codes);
    captured.residuals.push_back(residuals);
    captured.quantized.push_back(quantized);
  }
  return captured;
}

/// (|q| / |z|) R x, with R the rotation that takes z / |z| to q / |q|: what lies in their plane is
/// turned, the rest stays.
Values rotated(const Values& x, const Values& z, const Values& q) {
  const double z_norm = std::sqrt(dot(z, z)), q_norm = std::sqrt(dot(q, q));
  Values u = z, v = q;
  for (double& value : u) value /= z_norm;
  const double along = dot(u, q);
  for (size_t i = 0; i < v.size(); ++i) v[i] -= along * u[i];
  const double across = std::sqrt(dot(v, v));
  for (double& value : v) value /= across;
  const double xu = dot(x, u), xv = dot(x, v), cosine = along / q_norm, sine = across / q_norm;
  Values y = x;
  for (size_t i = 0; i < y.size(); ++i) {
    y[i] += (cosine * xu - sine * xv - xu) * u[i] + (sine * xu + cosine * xv - xv) * v[i];
    y[i] *= q_norm / z_norm;
  }
  return y;
}

/// The loss whose plain gradient the pass promises, as a function of the weights.
double surrogate(const Oracle& oracle, const Values& weights, const Rows& features,
                 const Captured& captured, const RqVaePass::LossScales& scales,
                 const Values& grad_head, bool rotates) {
  double loss = 0;
  for (size_t row = 0; row < features.size(); ++row) {
    const Values& z0 = captured.residuals[row][0];
    const Values& q0 = captured.quantized[row];
    const Values z = oracle.latent(weights, features[row]);
    Values q = Oracle::minus(z, Oracle::minus(z0, q0));  // z + stopped(q - z)
    if (rotates) q = rotated(z, z0, q0);
    if (!grad_head.empty()) {
      const Values h = oracle.mlp(weights, "head", q);
      loss += dot(h, part(grad_head, row * h.size(), (row + 1) * h.size()));
    }
    if (row >= kItems) continue;
    int64_t begin = 0;
    for (size_t m = 0; m < kSources.size(); ++m) {
      const int64_t dim = kSources[m].dim;
      const Values x = part(features[row], begin, begin + dim);
      begin += dim;
      const double weight = kSources[m].weight * kSources[m].weight / static_cast<double>(dim);
      loss += scales.reconstruction * weight *
              Oracle::squared_distance(x, oracle.mlp(weights, "decoders." + std::to_string(m), q));
    }
    for (size_t level = 0; level < kLevels.size(); ++level) {
      const Values& stopped = captured.residuals[row][level];
      const Values code = oracle.code(weights, level, captured.codes[row][level]);
      loss += scales.codebook * Oracle::squared_distance(stopped, code);
      // r_l - sg[e_l], of which z alone is not a constant
      const Values left = Oracle::minus(z, Oracle::minus(z0, captured.residuals[row][level + 1]));
      loss += scales.commitment * dot(left, left);
    }
  }
  return loss;
}

// --- the model under test ---------------------------------------------------------------------

struct Batch {
  Rows features;          // [kRows][5]
  std::vector<Buffer> x;  // by source
  Buffer num_kept, grad_head;
};

Batch make_batch(Device device, DType dtype) {
  Batch batch;
  const Values all = random_values(kRows * 5, 1);
  for (int64_t row = 0; row < kRows; ++row) {
    batch.features.push_back(part(all, row * 5, (row + 1) * 5));
  }
  int64_t begin = 0;
  for (const FeatureSource& source : kSources) {
    Values x;
    for (const Values& row : batch.features) {
      x.insert(x.end(), row.begin() + begin, row.begin() + begin + source.dim);
    }
    begin += source.dim;
    batch.x.push_back(make_tensor(device, dtype, {kRows, source.dim}, x));
  }
  batch.num_kept = make_int_tensor({device, dtype, 0}, kNumKept);
  batch.grad_head = make_tensor(device, dtype, {kRows, 2}, random_values(kRows * 2, 2));
  return batch;
}

std::vector<TensorView> views(const std::vector<Buffer>& buffers) {
  std::vector<TensorView> result;
  for (const Buffer& buffer : buffers) result.push_back(buffer.view());
  return result;
}

/// Random weights, biases too, 0 where the layout has padding.
Values random_weights(const RqVaeLayout& layout) {
  Values weights(layout.num_elements());
  for (const auto& tensor : layout.tensors()) {
    const Values values = random_values(tensor.shape.num_elements(), 7 + tensor.offset, 0.7);
    std::copy(values.begin(), values.end(), weights.begin() + tensor.offset);
  }
  return weights;
}

void set_weights(const RqVae& model, const Values& weights) {
  const TensorView& flat = model.weights();
  const Buffer values = make_tensor(flat.device, flat.dtype, flat.shape, weights);
  copy(flat, values.view(), Stream(flat.device));
  synchronize(flat.device);
}

struct Result {
  Values gradients, losses, residuals, quantized;
  std::vector<int32_t> codes;
};

Result run(const RqVae& model, const RqVaePass::LossScales& scales, bool with_head) {
  const TensorView& flat = model.weights();
  const Stream stream(flat.device);
  const Batch batch = make_batch(flat.device, flat.dtype);
  const Buffer gradients(flat.shape, flat.dtype, flat.device);
  RqVaePass pass(model, kRows, kItems);
  pass.encode(views(batch.x), stream);
  pass.decode(batch.num_kept.view(), stream);
  pass.backward(model.layout().view(gradients.view()), views(batch.x),
                with_head ? batch.grad_head.view() : TensorView(), scales, stream);
  return {to_doubles(gradients.view()), to_doubles(pass.losses()), to_doubles(pass.residuals()),
          to_doubles(pass.quantized()), to_host<int32_t>(pass.codes())};
}

struct Case {
  const char* name;
  RqVaePass::LossScales scales;
  bool with_head;
};
const Case kCases[] = {{"reconstruction", {0.3, 0, 0}, false},
                       {"codebook", {0, 0.4, 0}, false},
                       {"commitment", {0, 0, 0.7}, false},
                       {"head", {0, 0, 0}, true},
                       {"all", {0.3, 0.4, 0.7}, true}};

TEST(RqVaeGradientTest, EveryLossHasTheGradientOfItsSurrogate) {
  for (const char* estimator : {"straight_through", "rotation"}) {
    for (const std::vector<int64_t>& hidden : {std::vector<int64_t>{}, {4}, {5, 4}}) {
      RqVaeConfig config = small_config();
      config.gradient_estimator = estimator;
      config.hidden_sizes = hidden;
      const RqVae model(kSources, kLevels, config, Device::kCpu, DType::kFloat64);
      const Values weights = random_weights(model.layout());
      set_weights(model, weights);
      const Oracle oracle(model.layout(), config);
      const Batch batch = make_batch(Device::kCpu, DType::kFloat64);
      const Captured captured = capture(oracle, weights, batch.features);
      for (const Case& losses : kCases) {
        const Values grad_head = losses.with_head ? to_doubles(batch.grad_head.view()) : Values();
        const Values expected = finite_differences(
            [&](const Values& at) {
              return surrogate(oracle, at, batch.features, captured, losses.scales, grad_head,
                               estimator == std::string("rotation"));
            },
            weights);
        const Values actual = run(model, losses.scales, losses.with_head).gradients;
        expect_near(actual, expected, 1e-7, (std::string(losses.name) + ", " + estimator).c_str());
        EXPECT_GT(dot(actual, actual), 1e-4) << losses.name;
      }
    }
  }
}

TEST(RqVaeGradientTest, GradientsAreAddedToWhatIsThere) {
  const RqVae model(kSources, kLevels, small_config(), Device::kCpu, DType::kFloat64);
  set_weights(model, random_weights(model.layout()));
  const Values once = run(model, kCases[4].scales, true).gradients;
  const Batch batch = make_batch(Device::kCpu, DType::kFloat64);
  const Buffer gradients({model.layout().num_elements()}, DType::kFloat64);
  RqVaePass pass(model, kRows, kItems);
  Values twice = once;
  for (double& value : twice) value *= 2;
  for (int i = 0; i < 2; ++i) {
    pass.encode(views(batch.x), Stream());
    pass.decode(batch.num_kept.view(), Stream());
    pass.backward(model.layout().view(gradients.view()), views(batch.x), batch.grad_head.view(),
                  kCases[4].scales, Stream());
  }
  expect_near(to_doubles(gradients.view()), twice, 1e-12, "gradients");
}

class RqVaeTest : public DeviceTest {};
MIRABELLE_INSTANTIATE_DEVICES(RqVaeTest);

TEST_P(RqVaeTest, AFloat32PassAgreesWithTheOracleAndTheFloat64Pass) {
  const RqVaeConfig config = small_config();
  const RqVae model(kSources, kLevels, config, GetParam());
  const RqVae wide_model(kSources, kLevels, config, Device::kCpu, DType::kFloat64);
  const Values weights = random_weights(model.layout());
  set_weights(model, weights);
  set_weights(wide_model, weights);
  const Result result = run(model, kCases[4].scales, true);
  const Result expected = run(wide_model, kCases[4].scales, true);
  expect_near(result.gradients, expected.gradients, 1e-4, "gradients");
  expect_near(result.losses, expected.losses, 1e-4, "losses");

  const Oracle oracle(model.layout(), config);
  const Batch batch = make_batch(Device::kCpu, DType::kFloat64);
  const Captured captured = capture(oracle, weights, batch.features);
  Values losses(kSources.size() + kLevels.size());
  for (int64_t row = 0; row < kRows; ++row) {
    expect_near(part(result.quantized, row * 3, row * 3 + 3), captured.quantized[row], 1e-5, "q");
    for (size_t level = 0; level <= kLevels.size(); ++level) {
      const int64_t begin = (level * kRows + row) * 3;
      expect_near(part(result.residuals, begin, begin + 3), captured.residuals[row][level], 1e-5,
                  "residual");
      if (level == kLevels.size()) continue;
      EXPECT_EQ(result.codes[level * kRows + row], captured.codes[row][level]);
      const Values& left = captured.residuals[row][level + 1];
      if (row < kItems) losses[kSources.size() + level] += dot(left, left);
    }
    int64_t begin = 0;
    for (size_t m = 0; row < kItems && m < kSources.size(); ++m) {
      const Values x = part(batch.features[row], begin, begin + kSources[m].dim);
      begin += kSources[m].dim;
      losses[m] += Oracle::squared_distance(
          x, oracle.mlp(weights, "decoders." + std::to_string(m), captured.quantized[row]));
    }
  }
  expect_near(result.losses, losses, 1e-4, "losses");
}

TEST_P(RqVaeTest, TheEncoderGivesCodesAndLatentsForAnyBatchSize) {
  const RqVaeConfig config = small_config();
  RqVae model(kSources, kLevels, config, GetParam());
  model.initialize(3);
  const Values weights = to_doubles(model.weights());
  const Oracle oracle(model.layout(), config);
  constexpr int64_t kNumItems = 23;
  const Values features = random_values(kNumItems * 5, 4, 0.3);
  const ItemRows rows = {kNumItems, 5, [&](int64_t begin, int64_t end, float* out) {
                           std::copy(features.begin() + begin * 5, features.begin() + end * 5, out);
                         }};
  for (const int64_t batch_items : {1, 7, 23, 100}) {
    for (const auto& [begin, end] :
         {std::pair<int64_t, int64_t>{0, 23}, {5, 20}, {22, 23}, {4, 4}}) {
      std::vector<int32_t> codes((end - begin) * 2, -1), codes_alone = codes;
      std::vector<float> z((end - begin) * 3);
      RqVaeEncoder encoder(model, batch_items);
      encoder.encode(codes.data(), z.data(), rows, begin, end);
      encoder.encode(codes_alone.data(), nullptr, rows, begin, end);
      EXPECT_EQ(codes, codes_alone);
      for (int64_t item = begin; item < end; ++item) {
        Values x = part(features, item * 5, item * 5 + 5);
        // deviation 1: each of 3 title features has variance 1 / 3, of 2 image features 0.25 / 2
        for (int j = 0; j < 5; ++j) x[j] *= j < 3 ? std::sqrt(3.0) : std::sqrt(8.0);
        Values residual = oracle.latent(weights, x);
        const int64_t i = item - begin;
        expect_near(Values(z.begin() + i * 3, z.begin() + i * 3 + 3), residual, 1e-5, "z");
        for (int64_t level = 0; level < 2; ++level) {
          const int64_t code = oracle.nearest(weights, level, residual);
          EXPECT_EQ(codes[i * 2 + level], code) << "item " << item << ", level " << level;
          residual = Oracle::minus(residual, oracle.code(weights, level, code));
        }
      }
    }
  }
}

TEST(RqVaeLayoutTest, NamesEveryTensorOnceWithMatricesThenBiasesThenCodebooks) {
  const RqVaeConfig config = small_config();
  const RqVaeLayout layout(kSources, kLevels, config);
  std::vector<std::string> names;
  int64_t next = 0;
  for (const auto& tensor : layout.tensors()) {
    names.push_back(tensor.name);
    EXPECT_EQ(tensor.offset % 16, 0) << tensor.name;
    EXPECT_GE(tensor.offset, next) << tensor.name;
    next = tensor.offset + tensor.shape.num_elements();
    const bool is_matrix = tensor.name.find("bias") == std::string::npos &&
                           tensor.name.find("codebooks") == std::string::npos;
    EXPECT_EQ(tensor.offset < layout.num_matrix_elements(), is_matrix) << tensor.name;
    EXPECT_EQ(tensor.offset >= layout.codebooks_begin(), tensor.name.starts_with("codebooks"));
  }
  EXPECT_LE(next, layout.num_elements());
  EXPECT_EQ(names, (std::vector<std::string>{
                       "encoders.0.0.weight", "encoders.0.1.weight", "encoders.0.2.weight",
                       "projections.0",       "decoders.0.0.weight", "decoders.0.1.weight",
                       "decoders.0.2.weight", "encoders.1.0.weight", "encoders.1.1.weight",
                       "encoders.1.2.weight", "projections.1",       "decoders.1.0.weight",
                       "decoders.1.1.weight", "decoders.1.2.weight", "head.0.weight",
                       "head.1.weight",       "encoders.0.0.bias",   "encoders.0.1.bias",
                       "decoders.0.0.bias",   "decoders.0.1.bias",   "encoders.1.0.bias",
                       "encoders.1.1.bias",   "decoders.1.0.bias",   "decoders.1.1.bias",
                       "head.0.bias",         "codebooks.0",         "codebooks.1"}));
  expect_error("the flat array has shape [3], wanted",
               [&] { layout.view(Buffer({3}, DType::kFloat32).view()); });
}

TEST(RqVaeLayoutTest, WithoutAContrastiveLossThereIsNoHead) {
  RqVaeConfig config = small_config();
  config.contrastive_weight = 0;
  const RqVae model(kSources, kLevels, config, Device::kCpu);
  EXPECT_TRUE(model.tensors().head.empty());
  for (const auto& tensor : model.layout().tensors()) {
    EXPECT_FALSE(tensor.name.starts_with("head"));
  }
}

TEST(RqVaeLayoutTest, InitialWeightsAreAFunctionOfSeedAndName) {
  RqVae model(kSources, kLevels, small_config(), Device::kCpu);
  model.initialize(1);
  const Values first = to_doubles(model.weights());
  RqVaeConfig without_head = small_config();
  without_head.contrastive_weight = 0;
  RqVae other(kSources, kLevels, without_head, Device::kCpu);
  other.initialize(1);
  EXPECT_EQ(to_doubles(other.tensors().codebooks[1]), to_doubles(model.tensors().codebooks[1]));
  EXPECT_EQ(to_doubles(other.tensors().encoders[1][0].weight),
            to_doubles(model.tensors().encoders[1][0].weight));
  EXPECT_NE(to_doubles(model.tensors().projections[0]), to_doubles(model.tensors().projections[1]));
  model.initialize(2);
  EXPECT_NE(to_doubles(model.weights()), first);
}

}  // namespace
}  // namespace mirabelle::testing
