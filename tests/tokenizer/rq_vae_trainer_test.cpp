#include "mirabelle/tokenizer/rq_vae_trainer.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "mirabelle/tokenizer/contrastive_loss.h"
#include "mirabelle/tokenizer/residual_kmeans.h"
#include "support/backends.h"
#include "support/devices.h"
#include "support/errors.h"

namespace mirabelle::testing {
namespace {

using Values = std::vector<double>;

std::unique_ptr<Communicator> communicator_for(Device device) {
  auto self = make_self_communicator();
  return device == Device::kCpu ? std::move(self) : make_staged_communicator(std::move(self));
}

// --- the contrastive loss ---------------------------------------------------------------------

double product(const double* a, const double* b, int64_t n) {
  return std::inner_product(a, a + n, b, 0.0);
}

/// The mean over rows with a partner, as a double loop.
double info_nce(const Values& h, int64_t size, const std::vector<int32_t>& partners,
                double temperature, bool is_cosine = true) {
  const int64_t n = static_cast<int64_t>(partners.size());
  double total = 0, num_anchors = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (partners[i] < 0) continue;
    double sum = 0, positive = 0;
    for (int64_t j = 0; j < n; ++j) {
      if (j == i || partners[j] < 0) continue;
      const double *a = h.data() + i * size, *b = h.data() + j * size;
      const double lengths = std::sqrt(product(a, a, size) * product(b, b, size));
      const double similarity = product(a, b, size) / (is_cosine ? lengths : 1);
      sum += std::exp(similarity / temperature);
      if (j == partners[i]) positive = similarity / temperature;
    }
    total += std::log(sum) - positive;
    num_anchors += 1;
  }
  return total / num_anchors;
}

class ContrastiveLossTest : public BackendTest {
 protected:
  struct Result {
    Values grad, losses;
  };
  Result run(const Values& h, int64_t size, const std::vector<int32_t>& partners, int64_t parts,
             double temperature, double weight, const std::string& similarity = "cosine") {
    const auto communicator = communicator_for(GetParam().device);
    const int64_t n = static_cast<int64_t>(partners.size());
    RqVaeConfig config;
    config.parts = parts;
    config.contrastive_size = size;
    config.contrastive_temperature = temperature;
    config.contrastive_similarity = similarity;
    ContrastiveLoss loss(config, n / parts, GetParam().dtype, GetParam().device, *communicator);
    const Buffer grad = make_tensor(GetParam(), {n, size}, Values(n * size, 9.0));
    const Buffer rows = make_tensor(GetParam(), {n, size}, h);
    for (int i = 0; i < 2; ++i) {  // nothing is left from the call before
      loss.differentiate(grad.view(), rows.view(), partners, weight, stream_);
    }
    return {to_doubles(grad.view()), to_doubles(loss.losses())};
  }
};
MIRABELLE_INSTANTIATE_WIDE_BACKENDS(ContrastiveLossTest);

TEST_P(ContrastiveLossTest, IsInfoNceWithItsGradient) {
  const std::vector<int32_t> partners = {4, 5, -1, 7, 0, 1, -1, 3, 10, -1, 8, -1};
  const int64_t n = 12, size = 3;
  const Values h = random_values(n * size, 1, 0.5);
  const double temperature = 0.4, weight = 1.7;
  for (const std::string similarity : {"cosine", "dot_product"}) {
    const auto reference = [&](const Values& at) {
      return info_nce(at, size, partners, temperature, similarity == "cosine");
    };
    const Values expected =
        finite_differences([&](const Values& at) { return weight * reference(at); }, h);
    for (const int64_t parts : {1, 2, 4}) {
      const Result result = run(h, size, partners, parts, temperature, weight, similarity);
      ASSERT_EQ(static_cast<int64_t>(result.losses.size()), parts);
      const double loss = std::accumulate(result.losses.begin(), result.losses.end(), 0.0);
      EXPECT_NEAR(loss / 8, reference(h), 20 * GetParam().tolerance);
      expect_near(result.grad, expected, 20 * GetParam().tolerance + 1e-8, "grad_h");
    }
  }
}

TEST_P(ContrastiveLossTest, WithoutPairsThereIsNeitherLossNorGradient) {
  const Result result = run(random_values(8, 1), 2, {-1, -1, -1, -1}, 2, 0.1, 1);
  EXPECT_EQ(result.grad, Values(8, 0.0));
  EXPECT_EQ(result.losses, Values(2, 0.0));
}

TEST_P(ContrastiveLossTest, OnePairHasNothingToBeToldApartFrom) {
  const Result result = run({1, 2, 3, 4, 5, 6, 7, 8}, 2, {2, -1, 0, -1}, 1, 0.1, 1);
  expect_near(result.losses, {0}, GetParam().tolerance, "loss");
  expect_near(result.grad, Values(8, 0.0), GetParam().tolerance, "grad_h");
}

// --- training ---------------------------------------------------------------------------------

const std::vector<FeatureSource> kSources = {{"title", 12, 1}, {"image", 6, 0.5}};
constexpr int64_t kDim = 18;

/// Items that are sums of one of 8 coarse and one of 4 fine cluster centres, seen by two sources,
/// normalised as FeatureNormalization does.
struct PlantedItems {
  std::vector<float> features;
  std::vector<int64_t> coarse, fine;  // the cluster of each item
  int64_t num_items() const { return static_cast<int64_t>(coarse.size()); }
  ItemRows rows() const {
    return {num_items(), kDim, [this](int64_t begin, int64_t end, float* out) {
              std::copy(features.begin() + begin * kDim, features.begin() + end * kDim, out);
            }};
  }
};

PlantedItems planted_items(int64_t num_items, uint64_t seed) {
  Random random(random_key(seed, "planted"));
  Values coarse(8 * kDim), fine(4 * kDim);
  for (double& value : coarse) value = random.normal();
  for (double& value : fine) value = 0.4 * random.normal();
  PlantedItems items;
  for (int64_t i = 0; i < num_items; ++i) {
    items.coarse.push_back(random.below(8));
    items.fine.push_back(random.below(4));
    for (int64_t j = 0; j < kDim; ++j) {
      items.features.push_back(static_cast<float>(coarse[items.coarse[i] * kDim + j] +
                                                  fine[items.fine[i] * kDim + j] +
                                                  0.05 * random.normal()));
    }
  }
  FeatureNormalization normalization =
      fit_normalization(kSources, items.rows(), false, 64, *make_self_communicator());
  normalization.apply(items.features.data(), num_items);
  return items;
}

RqVaeConfig planted_config() {
  RqVaeConfig config;
  config.hidden_sizes = {32};
  config.source_size = 16;
  config.codebook_dim = 8;
  config.steps = 600;
  config.batch_items = 64;
  config.parts = 2;
  config.warmup_steps = 20;
  config.dead_code_steps = 20;
  config.contrastive_size = 8;
  return config;
}

const std::vector<int64_t> kLevels = {8, 4};

struct Trained {
  RqVae model;
  std::vector<RqVaeProgress> progress;
};
Trained fit_on(Device device, const PlantedItems& items, const RqVaeConfig& config,
               const CoOccurrences* pairs = nullptr, int64_t seed = 1) {
  std::vector<RqVaeProgress> progress;
  RqVae model = fit_rq_vae(items.rows(), kSources, pairs, kLevels, config, seed, device,
                           *communicator_for(device),
                           [&](const RqVaeProgress& now) { progress.push_back(now); });
  return {std::move(model), progress};
}

std::vector<int32_t> codes_of(const RqVae& model, const PlantedItems& items) {
  std::vector<int32_t> codes(items.num_items() * model.num_levels());
  RqVaeEncoder(model, 100).encode(codes.data(), nullptr, items.rows(), 0, items.num_items());
  return codes;
}

std::set<int32_t> codes_of_level(const std::vector<int32_t>& codes, int64_t level) {
  std::set<int32_t> used;
  for (size_t i = level; i < codes.size(); i += kLevels.size()) used.insert(codes[i]);
  return used;
}

class RqVaeTrainerTest : public DeviceTest {
 protected:
  static Trained fit(const PlantedItems& items, const RqVaeConfig& config,
                     const CoOccurrences* pairs = nullptr, int64_t seed = 1) {
    return fit_on(GetParam(), items, config, pairs, seed);
  }
};
MIRABELLE_INSTANTIATE_DEVICES(RqVaeTrainerTest);

TEST_P(RqVaeTrainerTest, LearnsPlantedClustersAndUsesAllCodes) {
  const PlantedItems items = planted_items(500, 1);
  for (const char* update : {"gradient", "ema"}) {
    for (const char* estimator : {"straight_through", "rotation"}) {
      RqVaeConfig config = planted_config();
      config.codebook_update = update;
      config.gradient_estimator = estimator;
      const auto [model, progress] = fit(items, config);
      SCOPED_TRACE(std::string(update) + ", " + estimator);
      ASSERT_EQ(progress.size(), 30u);
      // Of a variance of 1.25; with masks it includes items that keep their first code only.
      EXPECT_GT(progress.front().reconstruction, 1);
      EXPECT_LT(progress.back().reconstruction, 0.45);
      EXPECT_EQ(progress.back().used_codes, 1);
      EXPECT_EQ(progress.back().contrastive, 0);
      EXPECT_NEAR(progress.back().total,
                  progress.back().reconstruction +
                      (update == std::string("ema") ? 0.25 : 1.25) * progress.back().quantization,
                  1e-12);
      EXPECT_EQ(progress.back().step, 600);
      EXPECT_EQ(progress.back().steps, 600);
      const std::vector<int32_t> codes = codes_of(model, items);
      EXPECT_EQ(codes_of_level(codes, 0).size(), 8u);
      EXPECT_EQ(codes_of_level(codes, 1).size(), 4u);
    }
  }
}

TEST_P(RqVaeTrainerTest, MasksKeepOneCodeAsOftenAsTwo) {
  const PlantedItems items = planted_items(500, 1);
  RqVaeConfig config = planted_config();
  config.steps = 1;
  config.batch_items = 2000;  // each item four times
  config.kmeans_initialization = false;
  const double masked = fit(items, config).progress[0].reconstruction;
  config.progressive_masking = false;
  const double of_two = fit(items, config).progress[0].reconstruction;

  RqVae initial(kSources, kLevels, config, GetParam());
  initial.initialize(1);
  SourceRows input(kSources, 500, GetParam());
  for (int64_t row = 0; row < 500; ++row) input.set(row, items.features.data() + row * kDim);
  const Stream stream(GetParam());
  input.upload(stream);
  const Backend backend{GetParam(), DType::kFloat32, 1e-5};
  RqVaePass pass(initial, 500, 500);
  pass.encode(input.rows(0, 500), stream);
  pass.decode(make_int_tensor(backend, std::vector<int32_t>(500, 1)).view(), stream);
  const Buffer gradients({initial.layout().num_elements()}, DType::kFloat32, GetParam());
  pass.backward(initial.layout().view(gradients.view()), input.rows(0, 500), {}, {}, stream);
  const Values sums = to_doubles(pass.losses());
  const double of_one = (sums[0] / 12 + 0.25 * sums[1] / 6) / 500;
  EXPECT_GT(std::abs(of_one - of_two), 0.01);
  EXPECT_NEAR(masked, (of_one + of_two) / 2, 0.2 * std::abs(of_one - of_two));
}

TEST_P(RqVaeTrainerTest, TheFirstReportIsOfTheFirstLosses) {
  const PlantedItems items = planted_items(8, 2);
  RqVaeConfig config = planted_config();
  config.steps = 1;
  config.batch_items = 8;
  config.progressive_masking = config.kmeans_initialization = false;
  config.commitment_weight = 0.5;
  config.contrastive_weight = 0.3;
  config.contrastive_temperature = 0.5;
  // 0 and 1 are partners, and 2 has partner 3, which has none
  const CoOccurrences pairs = {{0, 1, 2, 3, 3, 3, 3, 3, 3}, {1, 0, 3}, {1, 1, 1}};
  const Trained trained = fit(items, config, &pairs);
  ASSERT_EQ(trained.progress.size(), 1u);
  const RqVaeProgress& report = trained.progress[0];

  RqVae initial(kSources, kLevels, config, GetParam());
  initial.initialize(1);
  // rows: the items, then the partners that the order of the batch would give them
  const std::vector<int64_t> row_items = {0, 1, 2, 3, 4, 5, 6, 7, 1, 0, 3};
  SourceRows input(kSources, 11, GetParam());
  for (int64_t row = 0; row < 11; ++row) {
    input.set(row, items.features.data() + row_items[row] * kDim);
  }
  const Stream stream(GetParam());
  input.upload(stream);
  const Backend backend{GetParam(), DType::kFloat32, 1e-5};
  RqVaePass pass(initial, 11, 8);
  pass.encode(input.rows(0, 11), stream);
  pass.decode(make_int_tensor(backend, std::vector<int32_t>(11, 2)).view(), stream);
  const Values heads = to_doubles(pass.head_output());
  const Buffer gradients({initial.layout().num_elements()}, DType::kFloat32, GetParam());
  pass.backward(initial.layout().view(gradients.view()), input.rows(0, 11), {}, {}, stream);
  const Values sums = to_doubles(pass.losses());
  EXPECT_NEAR(report.reconstruction, (sums[0] / 12 + 0.25 * sums[1] / 6) / 8, 1e-5);
  EXPECT_NEAR(report.quantization, (sums[2] + sums[3]) / 8, 1e-5);
  const double contrastive = info_nce(heads, 8, {8, 9, 10, -1, -1, -1, -1, -1, 0, 1, 2}, 0.5);
  EXPECT_NEAR(report.contrastive, contrastive, 1e-4);
  EXPECT_NEAR(report.total,
              report.reconstruction + 1.5 * report.quantization + 0.3 * report.contrastive, 1e-9);
}

/// Five partners for each item among those of its fine cluster.
CoOccurrences fine_pairs(const PlantedItems& items) {
  Random random(random_key(3, "pairs"));
  CoOccurrences pairs;
  pairs.offsets.push_back(0);
  for (int64_t i = 0; i < items.num_items(); ++i) {
    for (int found = 0; found < 5;) {
      const int64_t other = random.below(items.num_items());
      if (other == i || items.fine[other] != items.fine[i]) continue;
      pairs.partners.push_back(static_cast<int32_t>(other));
      pairs.weights.push_back(1);
      ++found;
    }
    pairs.offsets.push_back(static_cast<int64_t>(pairs.partners.size()));
  }
  return pairs;
}

double share_of_pairs_with_equal_first_codes(const std::vector<int32_t>& codes,
                                             const CoOccurrences& pairs) {
  double equal = 0;
  for (size_t i = 0; i + 1 < pairs.offsets.size(); ++i) {
    for (int64_t p = pairs.offsets[i]; p < pairs.offsets[i + 1]; ++p) {
      equal += codes[2 * i] == codes[2 * pairs.partners[p]];
    }
  }
  return equal / static_cast<double>(pairs.partners.size());
}

TEST_P(RqVaeTrainerTest, TheContrastiveLossGivesItemsThatMeetTheSameFirstCode) {
  const PlantedItems items = planted_items(400, 4);
  const CoOccurrences pairs = fine_pairs(items);
  RqVaeConfig config = planted_config();
  const Trained without = fit(items, config, &pairs);
  config.contrastive_weight = 1;
  const Trained with = fit(items, config, &pairs);
  EXPECT_LT(with.progress.back().contrastive, 0.8 * with.progress.front().contrastive);
  const double share_without =
      share_of_pairs_with_equal_first_codes(codes_of(without.model, items), pairs);
  const double share_with =
      share_of_pairs_with_equal_first_codes(codes_of(with.model, items), pairs);
  EXPECT_LT(share_without, 0.3);
  EXPECT_GT(share_with, share_without + 0.2);
}

TEST_P(RqVaeTrainerTest, ADeadCodeMovesToWhatAnItemHasLeftBeforeItsLevel) {
  const PlantedItems items = planted_items(8, 5);
  RqVaeConfig config = planted_config();
  config.steps = 2;  // after the last nothing moves
  config.batch_items = 8;
  config.learning_rate = 1e-30;
  config.kmeans_initialization = false;
  config.dead_code_steps = 1;
  const Trained trained = fit(items, config);
  const Values moved[] = {to_doubles(trained.model.tensors().codebooks[0]),
                          to_doubles(trained.model.tensors().codebooks[1])};

  RqVae initial(kSources, kLevels, config, GetParam());
  initial.initialize(1);
  std::vector<int32_t> codes(16);
  std::vector<float> latents(8 * 8);
  RqVaeEncoder(initial, 8).encode(codes.data(), latents.data(), items.rows(), 0, 8);
  Values residuals(latents.begin(), latents.end());  // [item][8]
  for (int64_t level = 0; level < 2; ++level) {
    const Values before = to_doubles(initial.tensors().codebooks[level]);
    const std::set<int32_t> used = codes_of_level(codes, level);
    EXPECT_LT(static_cast<int64_t>(used.size()), kLevels[level]) << "the test wants dead codes";
    for (int32_t code = 0; code < kLevels[level]; ++code) {
      const auto is_now = [&](const Values& rows, int64_t row) {
        double distance = 0;
        for (int64_t j = 0; j < 8; ++j) {
          distance += std::abs(rows[row * 8 + j] - moved[level][code * 8 + j]);
        }
        return distance < 1e-5;
      };
      if (used.count(code)) {
        EXPECT_TRUE(is_now(before, code)) << level << ", " << code;
        continue;
      }
      bool is_residual = false;
      for (int64_t item = 0; item < 8; ++item) is_residual |= is_now(residuals, item);
      EXPECT_TRUE(is_residual) << level << ", " << code;
    }
    for (int64_t i = 0; i < 64; ++i) residuals[i] -= before[codes[i / 8 * 2 + level] * 8 + i % 8];
  }

  config.dead_code_steps = 0;
  EXPECT_EQ(to_doubles(fit(items, config).model.tensors().codebooks[0]),
            to_doubles(initial.tensors().codebooks[0]));
}

TEST_P(RqVaeTrainerTest, KMeansStartsWithTheClustersOfLatents) {
  const PlantedItems items = planted_items(500, 1);
  RqVaeConfig config = planted_config();
  config.steps = 0;
  const Trained started = fit(items, config);
  EXPECT_TRUE(started.progress.empty());
  config.kmeans_initialization = false;
  const Trained random = fit(items, config);
  EXPECT_EQ(to_doubles(random.model.tensors().projections[0]),
            to_doubles(started.model.tensors().projections[0]));
  const auto error = [&](const RqVae& model) {
    std::vector<int32_t> codes(1000);
    std::vector<float> z(500 * 8);
    RqVaeEncoder(model, 64).encode(codes.data(), z.data(), items.rows(), 0, 500);
    const Values codebook = to_doubles(model.tensors().codebooks[0]);
    double sum = 0;
    for (int64_t i = 0; i < 500 * 8; ++i) {
      const double left = z[i] - codebook[codes[i / 8 * 2] * 8 + i % 8];
      sum += left * left;
    }
    return sum;
  };
  EXPECT_LT(error(started.model), 0.5 * error(random.model));
}

TEST_P(RqVaeTrainerTest, IsAFunctionOfTheSeed) {
  const PlantedItems items = planted_items(50, 1);
  RqVaeConfig config = planted_config();
  config.steps = 3;
  const Values first = to_doubles(fit(items, config).model.weights());
  EXPECT_EQ(to_doubles(fit(items, config).model.weights()), first);
  EXPECT_NE(to_doubles(fit(items, config, nullptr, 2).model.weights()), first);
}

TEST_P(RqVaeTrainerTest, TakesFewerItemsThanABatchAndThanCodes) {
  for (const int64_t num_items : {1, 3}) {
    const PlantedItems items = planted_items(num_items, 1);
    RqVaeConfig config = planted_config();
    config.steps = 30;
    const Trained trained = fit(items, config);
    EXPECT_TRUE(std::isfinite(trained.progress.back().total));
  }
}

/// The ranges that a training reads.
std::vector<std::pair<int64_t, int64_t>> reads_of(int64_t num_items, int64_t batch_items,
                                                  int64_t steps) {
  std::vector<std::pair<int64_t, int64_t>> reads;
  const ItemRows rows = {num_items, kDim, [&](int64_t begin, int64_t end, float* out) {
                           reads.emplace_back(begin, end);
                           std::fill_n(out, (end - begin) * kDim, 1.0f);
                         }};
  RqVaeConfig config = planted_config();
  config.batch_items = batch_items;
  config.steps = steps;
  config.kmeans_initialization = false;
  fit_rq_vae(rows, kSources, nullptr, kLevels, config, 1, Device::kCpu, *make_self_communicator());
  return reads;
}

TEST(RqVaeBatchesTest, EveryEpochTakesEveryItemOnceInAnotherOrder) {
  std::vector<int64_t> items;
  for (const auto& [begin, end] : reads_of(30, 10, 6)) {
    for (int64_t item = begin; item < end; ++item) items.push_back(item);
  }
  ASSERT_EQ(items.size(), 60u);
  const std::vector<int64_t> first(items.begin(), items.begin() + 30);
  const std::vector<int64_t> second(items.begin() + 30, items.end());
  EXPECT_EQ(std::set(first.begin(), first.end()).size(), 30u);
  EXPECT_EQ(std::set(second.begin(), second.end()).size(), 30u);
  EXPECT_NE(first, second);
  EXPECT_FALSE(std::is_sorted(first.begin(), first.end()));
}

TEST(RqVaeBatchesTest, OfManyItemsRunsOfNeighboursAreRead) {
  const auto reads = reads_of((1 << 20) + 100, 256, 5);
  ASSERT_EQ(reads.size(), 20u);
  std::set<int64_t> runs;
  for (const auto& [begin, end] : reads) {
    EXPECT_EQ(begin % 64, 0);
    EXPECT_EQ(end - begin, 64);
    runs.insert(begin);
  }
  EXPECT_EQ(runs.size(), 20u);
}

TEST(RqVaeErrorsTest, SaysThatItDiverged) {
  const PlantedItems items = planted_items(8, 1);
  RqVaeConfig config = planted_config();
  config.learning_rate = 1e30;
  expect_error("a lower rq_vae.learning_rate", [&] {
    fit_rq_vae(items.rows(), kSources, nullptr, kLevels, config, 1, Device::kCpu,
               *make_self_communicator());
  });
}

TEST(RqVaeErrorsTest, SaysWhatDoesNotFit) {
  const PlantedItems items = planted_items(8, 1);
  const auto fit = [&](const RqVaeConfig& config, const CoOccurrences* pairs,
                       const ItemRows& rows) {
    fit_rq_vae(rows, kSources, pairs, kLevels, config, 1, Device::kCpu, *make_self_communicator());
  };
  RqVaeConfig config = planted_config();
  config.steps = 1;
  ItemRows rows = items.rows();
  rows.dim = 17;
  expect_error("the sources have 18 features, the rows 17", [&] { fit(config, nullptr, rows); });
  rows = items.rows();
  rows.num_items = 0;
  expect_error(ErrorKind::kData, "there are no items", [&] { fit(config, nullptr, rows); });
  config.batch_items = 1;
  expect_error(ErrorKind::kUsage, "rq_vae.batch_items",
               [&] { fit(config, nullptr, items.rows()); });
  config = planted_config();
  config.steps = 1;
  config.contrastive_weight = 1;
  expect_error(ErrorKind::kUsage, "rq_vae.contrastive_weight wants co-occurrences",
               [&] { fit(config, nullptr, items.rows()); });
  const CoOccurrences too_few = {{0, 0}, {}, {}};
  expect_error("the co-occurrences are those of 1 items, wanted 8",
               [&] { fit(config, &too_few, items.rows()); });
  const CoOccurrences stranger = {{0, 1, 1, 1, 1, 1, 1, 1, 1}, {8}, {1}};
  expect_error("item 0 has the partner 8 of 8 items",
               [&] { fit(config, &stranger, items.rows()); });
}

}  // namespace
}  // namespace mirabelle::testing
