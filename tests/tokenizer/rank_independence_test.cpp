// Every rank compares what all ranks computed together with what it computes alone: the same bits.
#include <gtest/gtest.h>

#include <numeric>

#include "mirabelle/core/random.h"
#include "mirabelle/tokenizer/canonical_sum.h"
#include "mirabelle/tokenizer/residual_kmeans.h"
#include "support/devices.h"

namespace mirabelle::testing {
namespace {

/// The same verdict on every rank.
void expect_on_all_ranks(const Communicator& world, bool holds, const char* what) {
  int64_t failures = holds ? 0 : 1;
  world.all_reduce(view_of(&failures, {1}), ReduceOp::kSum, Stream());
  EXPECT_EQ(failures, 0) << what << " differs on so many of " << world.size() << " ranks";
}

std::vector<double> sum_of(const std::vector<double>& values, const Communicator& communicator) {
  CanonicalSum sum(communicator);
  for (int64_t chunk = sum.chunks().begin; chunk < sum.chunks().end; ++chunk) {
    const auto [begin, end] = CanonicalSum::items(chunk, static_cast<int64_t>(values.size()));
    std::vector<double> part(2);
    for (int64_t i = begin; i < end; ++i) {
      part[0] += values[i];
      part[1] += 1;
    }
    sum.add(std::move(part));
  }
  return sum.finish();
}

TEST(CanonicalSumTest, HasTheSameBitsForAnyNumberOfRanks) {
  const auto world = make_mpi_communicator();
  const auto self = make_self_communicator();
  for (const int64_t n : {0, 1, 7, 64, 1000, 12101}) {
    std::vector<double> values(n);
    for (int64_t i = 0; i < n; ++i) values[i] = random_normal(5, i) * (i % 3 == 0 ? 1e9 : 1e-3);
    const std::vector<double> together = sum_of(values, *world), alone = sum_of(values, *self);
    expect_on_all_ranks(*world, together == alone, "the sum");
    const double plain = std::accumulate(values.begin(), values.end(), 0.0);
    expect_on_all_ranks(*world, std::abs(together[0] - plain) <= 1e-3 && together[1] == n,
                        "the plain sum");
  }
}

TEST(CanonicalSumTest, CutsAllItemsIntoNeighbouringChunks) {
  const auto world = make_mpi_communicator();
  for (const int64_t n : {0, 1, 63, 64, 65, 1000000007}) {
    int64_t next = 0;
    bool whole = true;
    for (int64_t chunk = 0; chunk < CanonicalSum::kNumChunks; ++chunk) {
      const auto [begin, end] = CanonicalSum::items(chunk, n);
      whole = whole && begin == next && end >= begin;
      next = end;
    }
    expect_on_all_ranks(*world, whole && next == n, "the chunks' range");
  }
}

ItemRows rows_of(const std::vector<float>& values, int64_t dim) {
  return {static_cast<int64_t>(values.size()) / dim, dim,
          [&values, dim](int64_t begin, int64_t end, float* out) {
            std::copy(values.begin() + begin * dim, values.begin() + end * dim, out);
          }};
}

void expect_same_fit(int64_t num_items, int64_t dim, int64_t num_different,
                     const TokenizerConfig& config, Device device) {
  std::vector<float> values(num_items * dim);
  for (int64_t i = 0; i < num_items; ++i) {
    for (int64_t j = 0; j < dim; ++j) {
      values[i * dim + j] = static_cast<float>(random_normal(9, i % num_different * dim + j));
    }
  }
  const auto world = make_mpi_communicator();
  const auto self = make_self_communicator();
  const ItemRows rows = rows_of(values, dim);
  const auto fit = [&](const Communicator& communicator) {
    return residual_kmeans(rows, config, device, communicator);
  };
  const ResidualKMeans together = fit(*world), alone = fit(*self);
  bool same_codebooks = together.codebooks.size() == alone.codebooks.size();
  for (size_t level = 0; same_codebooks && level < alone.codebooks.size(); ++level) {
    same_codebooks = together.codebooks[level].rows == alone.codebooks[level].rows;
  }
  expect_on_all_ranks(*world, same_codebooks, "the codebooks");
  expect_on_all_ranks(*world, together.codes == alone.codes, "the codes");
  expect_on_all_ranks(*world, together.errors == alone.errors, "the errors");
}

class RankIndependenceTest : public DeviceTest {};
MIRABELLE_INSTANTIATE_DEVICES(RankIndependenceTest);

TEST_P(RankIndependenceTest, CodebooksAndCodesHaveTheSameBits) {
  TokenizerConfig config;
  config.levels = {32, 16, 5};
  config.batch_items = 100;
  config.iterations = 10;
  expect_same_fit(3001, 24, 3001, config, GetParam());
}

TEST_P(RankIndependenceTest, HoldsWhileEmptyCodesMove) {
  TokenizerConfig config;
  config.levels = {64, 8};
  config.batch_items = 16;
  config.initialization = "sample";
  expect_same_fit(1000, 6, 90, config,
                  GetParam());  // many duplicates, so the start draws some twice
}

TEST_P(RankIndependenceTest, HoldsForFewerItemsThanChunks) {
  TokenizerConfig config;
  config.levels = {4, 4};
  expect_same_fit(3, 5, 3, config, GetParam());
  expect_same_fit(1, 5, 1, config, GetParam());
  expect_same_fit(50, 5, 20, config, GetParam());
}

TEST(FitNormalizationTest, HasTheSameBitsForAnyNumberOfRanks) {
  std::vector<float> values(2003 * 6);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(random_normal(3, i));
  const auto world = make_mpi_communicator();
  const auto self = make_self_communicator();
  const std::vector<FeatureSource> sources = {{"a", 4, 1}, {"b", 2, 2}};
  for (const bool per_source : {false, true}) {
    const auto together = fit_normalization(sources, rows_of(values, 6), per_source, 50, *world);
    const auto alone = fit_normalization(sources, rows_of(values, 6), per_source, 50, *self);
    expect_on_all_ranks(*world, together.means == alone.means, "the means");
    expect_on_all_ranks(*world, together.deviations == alone.deviations, "the deviations");
  }
}

}  // namespace
}  // namespace mirabelle::testing
