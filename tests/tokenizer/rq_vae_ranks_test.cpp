// Every rank compares what all ranks trained together with what it trains alone: the same bits.
#include <gtest/gtest.h>

#include <cmath>

#include "mirabelle/core/random.h"
#include "mirabelle/tokenizer/contrastive_loss.h"
#include "mirabelle/tokenizer/rq_vae_trainer.h"
#include "support/errors.h"

namespace mirabelle::testing {
namespace {

const std::vector<FeatureSource> kSources = {{"title", 7, 1}, {"image", 5, 0.5}};
const std::vector<int64_t> kLevels = {9, 5, 3};
constexpr int64_t kNumItems = 103, kDim = 12;

/// The same verdict on every rank.
void expect_on_all_ranks(const Communicator& world, bool holds, const std::string& what) {
  int64_t failures = holds ? 0 : 1;
  world.all_reduce(view_of(&failures, {1}), ReduceOp::kSum, Stream());
  EXPECT_EQ(failures, 0) << what << " differs on so many of " << world.size() << " ranks";
}

ItemRows item_rows() {
  return {kNumItems, kDim, [](int64_t begin, int64_t end, float* out) {
            for (int64_t i = begin * kDim; i < end * kDim; ++i) {
              *out++ = static_cast<float>(0.3 * random_normal(5, i));
            }
          }};
}

/// One partner for two items of three.
CoOccurrences some_pairs() {
  CoOccurrences pairs;
  pairs.offsets.push_back(0);
  for (int64_t i = 0; i < kNumItems; ++i) {
    for (int64_t p = 0; p < i % 3; ++p) {
      pairs.partners.push_back(static_cast<int32_t>((i * 17 + p) % kNumItems));
      pairs.weights.push_back(static_cast<float>(1 + p));
    }
    pairs.offsets.push_back(static_cast<int64_t>(pairs.partners.size()));
  }
  return pairs;
}

struct Trained {
  std::vector<float> weights;
  std::vector<double> reports;
};

Trained train(const RqVaeConfig& config, const Communicator& communicator) {
  const CoOccurrences pairs = some_pairs();
  Trained result;
  const RqVae model = fit_rq_vae(
      item_rows(), kSources, &pairs, kLevels, config, 3, Device::kCpu, communicator,
      [&](const RqVaeProgress& now) {
        result.reports.insert(result.reports.end(), {now.reconstruction, now.quantization,
                                                     now.contrastive, now.total, now.used_codes});
      });
  const float* weights = model.weights().as<float>();
  result.weights.assign(weights, weights + model.layout().num_elements());
  return result;
}

TEST(RqVaeRanksTest, WeightsAndReportsHaveTheSameBits) {
  const auto world = make_mpi_communicator();
  const auto self = make_self_communicator();
  for (const char* update : {"gradient", "ema"}) {
    for (const double contrastive_weight : {0.0, 0.5}) {
      RqVaeConfig config;
      config.hidden_sizes = {16};
      config.source_size = 8;
      config.codebook_dim = 6;
      config.steps = 30;
      config.batch_items = 40;
      config.parts = 4;
      config.codebook_update = update;
      config.contrastive_weight = contrastive_weight;
      config.contrastive_size = 4;
      config.dead_code_steps = 3;
      const Trained together = train(config, *world), alone = train(config, *self);
      const std::string what = std::string(update) + (contrastive_weight > 0 ? ", pairs" : "");
      expect_on_all_ranks(*world, together.weights == alone.weights, "the weights, " + what);
      expect_on_all_ranks(*world, together.reports == alone.reports, "the reports, " + what);
      expect_on_all_ranks(*world, alone.reports.size() == 50 && std::isfinite(alone.weights[0]),
                          "the number of reports, " + what);
    }
  }
}

TEST(RqVaeRanksTest, RanksMustDivideTheParts) {
  const auto world = make_mpi_communicator();
  if (world->size() == 1) GTEST_SKIP() << "one rank divides everything";
  RqVaeConfig config;
  config.parts = 1;
  config.steps = 1;
  expect_error(ErrorKind::kUsage, "does not divide rq_vae.parts, 1",
               [&] { train(config, *world); });
}

}  // namespace
}  // namespace mirabelle::testing
