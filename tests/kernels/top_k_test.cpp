#include "mirabelle/kernels/top_k.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "support/backends.h"
#include "support/errors.h"

namespace mirabelle::testing {
namespace {

constexpr double kNone = -std::numeric_limits<double>::infinity();

struct Ranking {
  std::vector<double> values;
  std::vector<int32_t> indices;
  bool operator==(const Ranking&) const = default;
};

/// A stable sort of what each segment has above -infinity, cut off or filled up at k.
Ranking oracle(const std::vector<double>& scores, const std::vector<int32_t>& offsets, int64_t k,
               TopKOrder order) {
  Ranking result;
  for (size_t s = 0; s + 1 < offsets.size(); ++s) {
    const double* segment = scores.data() + offsets[s];
    std::vector<int32_t> chosen;
    for (int32_t i = 0; i < offsets[s + 1] - offsets[s]; ++i) {
      if (segment[i] > kNone) chosen.push_back(i);
    }
    std::stable_sort(chosen.begin(), chosen.end(),
                     [&](int32_t a, int32_t b) { return segment[a] > segment[b]; });
    if (static_cast<int64_t>(chosen.size()) > k) chosen.resize(k);
    if (order == TopKOrder::kByIndex) std::sort(chosen.begin(), chosen.end());
    for (int64_t i = 0; i < k; ++i) {
      const bool there = i < static_cast<int64_t>(chosen.size());
      result.values.push_back(there ? segment[chosen[i]] : kNone);
      result.indices.push_back(there ? chosen[i] : -1);
    }
  }
  return result;
}

/// Whole numbers below `levels`: many are equal.
std::vector<double> coarse_values(int64_t n, int64_t levels, uint64_t seed) {
  Random random(random_key(seed, "test"));
  std::vector<double> values(n);
  for (double& value : values) value = static_cast<double>(random.below(levels));
  return values;
}

class TopKTest : public BackendTest {
 protected:
  /// The segments one after the other; what a row has behind its segment would win.
  Ranking run(const std::vector<double>& scores, const std::vector<int32_t>& offsets, int64_t k,
              TopKOrder order = TopKOrder::kBestFirst) {
    const Backend& backend = GetParam();
    const int64_t num_segments = static_cast<int64_t>(offsets.size()) - 1;
    std::vector<int32_t> sizes(num_segments);
    std::adjacent_difference(offsets.begin() + 1, offsets.end(), sizes.begin());
    const int64_t max_size = sizes.empty() ? 0 : *std::max_element(sizes.begin(), sizes.end()) + 1;
    std::vector<double> rows(num_segments * max_size, 1e30);
    for (int64_t s = 0; s < num_segments; ++s) {
      std::copy_n(scores.begin() + offsets[s], sizes[s], rows.begin() + s * max_size);
    }
    const Buffer values =
        make_tensor(backend, {num_segments, k}, std::vector<double>(num_segments * k, NAN));
    const Buffer indices({num_segments, k}, DType::kInt32, backend.device);
    const Buffer input = make_tensor(backend, {num_segments, max_size}, rows);
    const Buffer segment_sizes = make_int_tensor(backend, sizes);
    segmented_top_k(values.view(), indices.view(), input.view(), segment_sizes.view(), order,
                    stream_);
    return {to_doubles(values.view()), to_host<int32_t>(indices.view())};
  }

  void expect_sorted(const std::vector<double>& scores, const std::vector<int32_t>& offsets,
                     int64_t k) {
    for (TopKOrder order : {TopKOrder::kBestFirst, TopKOrder::kByIndex}) {
      EXPECT_TRUE(run(scores, offsets, k, order) == oracle(scores, offsets, k, order))
          << scores.size() << " scores, " << offsets.size() - 1 << " segments, k " << k
          << (order == TopKOrder::kByIndex ? ", by index" : "");
    }
  }
};
MIRABELLE_INSTANTIATE_WIDE_BACKENDS(TopKTest);
#ifdef MIRABELLE_CUDA
// The only kernel that has float64 on CUDA, too.
INSTANTIATE_TEST_SUITE_P(Float64OnCuda, TopKTest,
                         ::testing::Values(Backend{Device::kCuda, DType::kFloat64, 1e-12}),
                         backend_name);
#endif

TEST_P(TopKTest, EqualsAStableSortForSegmentsOfAllSizes) {
  const std::vector<int32_t> offsets = {0, 1, 1, 3, 66, 67, 130, 258, 1300, 1363, 5000, 5000};
  const auto scores = random_values(offsets.back(), 1);
  for (int64_t k : {1, 2, 3, 10, 50, 63, 64, 65, 200, 1000}) {
    expect_sorted(scores, offsets, k);
  }
}

TEST_P(TopKTest, EqualScoresComeInTheOrderOfTheirIndex) {
  for (int64_t levels : {1, 2, 7, 100}) {
    for (int64_t k : {1, 5, 64, 300}) {
      expect_sorted(coarse_values(1000, levels, levels), {0, 130, 400, 1000}, k);
    }
  }
}

TEST_P(TopKTest, TakesTheBestOfManyInAnyOrder) {
  const int32_t n = 60'000;
  auto scores = random_values(n, 3);
  for (int64_t k : {10, 1000}) expect_sorted(scores, {0, n}, k);
  std::sort(scores.begin(), scores.end());
  for (int64_t k : {10, 1000}) expect_sorted(scores, {0, n}, k);
  std::reverse(scores.begin(), scores.end());
  for (int64_t k : {10, 1000}) expect_sorted(scores, {0, n}, k);
}

TEST_P(TopKTest, ShortSegmentsAreFilledUp) {
  const Ranking ranking = run({2, 5, 3}, {0, 2, 2, 3}, 3);
  EXPECT_EQ(ranking.values,
            (std::vector<double>{5, 2, kNone, kNone, kNone, kNone, 3, kNone, kNone}));
  EXPECT_EQ(ranking.indices, (std::vector<int32_t>{1, 0, -1, -1, -1, -1, 0, -1, -1}));
}

TEST_P(TopKTest, ScoresOfMinusInfinityAreNeverChosen) {
  const std::vector<double> scores = {kNone, 2, kNone, 1, kNone, 3};
  const Ranking best_first = run(scores, {0, 6}, 5);
  EXPECT_EQ(best_first.values, (std::vector<double>{3, 2, 1, kNone, kNone}));
  EXPECT_EQ(best_first.indices, (std::vector<int32_t>{5, 1, 3, -1, -1}));
  const Ranking by_index = run(scores, {0, 6}, 5, TopKOrder::kByIndex);
  EXPECT_EQ(by_index.values, (std::vector<double>{2, 1, 3, kNone, kNone}));
  EXPECT_EQ(by_index.indices, (std::vector<int32_t>{1, 3, 5, -1, -1}));
  expect_sorted(std::vector<double>(200, kNone), {0, 3, 200}, 5);
}

TEST_P(TopKTest, TakesSegmentsThatHaveMoreOrFewerCandidatesThanK) {
  auto scores = random_values(3000, 8);
  for (size_t i = 0; i < scores.size(); ++i) {
    if (i % 7 != 0) scores[i] = kNone;
  }
  for (int64_t k : {1, 70, 71, 72, 150, 1000}) expect_sorted(scores, {0, 500, 1000, 3000}, k);
}

TEST_P(TopKTest, InfinityIsTheBestScore) {
  std::vector<double> scores = random_values(300, 4);
  scores[77] = scores[210] = -kNone;
  expect_sorted(scores, {0, 300}, 4);
}

TEST_P(TopKTest, NothingIsAskedOfNoSegmentsAndNoK) {
  EXPECT_TRUE(run({}, {0}, 5).values.empty());
  EXPECT_TRUE(run({1, 2}, {0, 2}, 0).values.empty());
  EXPECT_EQ(run({}, {0, 0}, 1).indices, (std::vector<int32_t>{-1}));
}

TEST_P(TopKTest, TakesManyOfASegment) {
  const std::vector<int32_t> offsets = {0, 9000, 9000, 9100, 18000};
  for (int64_t k : {4096, 5000, 8192}) {
    expect_sorted(random_values(offsets.back(), 6), offsets, k);
    expect_sorted(coarse_values(offsets.back(), 50, 7), offsets, k);
  }
}

TEST_P(TopKTest, ZerosOfBothSignsAreEqual) {
  expect_sorted({-1, -0.0, 0.0, -0.0, 1, 0.0}, {0, 6}, 4);
  EXPECT_EQ(run({-0.0, 0.0, -0.0, 0.0}, {0, 4}, 3).indices, (std::vector<int32_t>{0, 1, 2}));
}

#ifdef MIRABELLE_CUDA
TEST_P(TopKTest, RefusesMoreThanSharedMemoryHolds) {
  if (GetParam().device != Device::kCuda) GTEST_SKIP() << "CUDA only";
  expect_error("the top 8193 are wanted; on CUDA at most 8192", [&] { run({1, 2}, {0, 2}, 8193); });
}
#endif

TEST_P(TopKTest, ResultsDoNotDependOnTheNumberOfThreads) {
  if (GetParam().device != Device::kCpu) GTEST_SKIP() << "CPU only";
  std::vector<int32_t> offsets = {0};
  for (int32_t segment = 0; segment < 200; ++segment) {
    offsets.push_back(offsets.back() + segment * 7 % 90);
  }
  const auto scores = coarse_values(offsets.back(), 20, 5);
  const int threads = omp_get_max_threads();
  for (int n : {1, 2, 5}) {
    omp_set_num_threads(n);
    expect_sorted(scores, offsets, 30);
  }
  omp_set_num_threads(threads);
}

struct Operands {
  Buffer values = Buffer({2, 3}, DType::kFloat32), indices = Buffer({2, 3}, DType::kInt32);
  Buffer scores = Buffer({2, 5}, DType::kFloat32);
  Buffer sizes = make_int_tensor(kBackends[0], {2, 5});

  std::string error() const {
    try {
      segmented_top_k(values.view(), indices.view(), scores.view(), sizes.view(),
                      TopKOrder::kBestFirst, Stream());
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }
};

TEST(TopKCheckTest, AcceptsMatchingOperands) { EXPECT_EQ(Operands().error(), ""); }

TEST(TopKCheckTest, RefusesScoresAndValuesOfTheWrongRank) {
  Operands operands;
  operands.scores = Buffer({5}, DType::kFloat32);
  EXPECT_EQ(operands.error(), "scores has shape [5], wanted [num_segments, max_size]");
  operands = {};
  operands.values = Buffer({6}, DType::kFloat32);
  EXPECT_EQ(operands.error(), "values has shape [6], wanted [num_segments, k]");
}

TEST(TopKCheckTest, RefusesResultsOfOtherShapesOrTypes) {
  Operands operands;
  operands.values = Buffer({3, 3}, DType::kFloat32);
  EXPECT_EQ(operands.error(), "values has shape [3, 3], wanted [2, 3]");
  operands.values = Buffer({2, 3}, DType::kFloat64);
  EXPECT_EQ(operands.error(), "values is float64, wanted float32");
  operands = {};
  operands.indices = Buffer({2, 4}, DType::kInt32);
  EXPECT_EQ(operands.error(), "indices has shape [2, 4], wanted [2, 3]");
  operands.indices = Buffer({2, 3}, DType::kInt64);
  EXPECT_EQ(operands.error(), "indices is int64, wanted int32");
}

TEST(TopKCheckTest, RefusesBfloat16) {
  Operands operands;
  operands.scores = Buffer(operands.scores.view().shape, DType::kBFloat16);
  operands.values = Buffer(operands.values.view().shape, DType::kBFloat16);
  EXPECT_EQ(operands.error(), "no kernel for bfloat16 on cpu");
}

TEST(TopKCheckTest, RefusesSizesThatAreNotThoseOfTheScores) {
  Operands operands;
  operands.sizes = make_int_tensor(kBackends[0], {2, 5, 1});
  EXPECT_EQ(operands.error(), "sizes has shape [3], wanted [2]");
  operands.sizes = make_int_tensor(kBackends[0], {2, 6});
  EXPECT_EQ(operands.error(), "sizes[1] is 6, wanted 0 .. 5");
  operands.sizes = make_int_tensor(kBackends[0], {-1, 5});
  EXPECT_EQ(operands.error(), "sizes[0] is -1, wanted 0 .. 5");
}

TEST(TopKCheckTest, RefusesSegmentsTooLongForTheirIndices) {
  Operands operands;
  operands.scores = Buffer({0, int64_t{1} << 31}, DType::kFloat32);
  EXPECT_EQ(operands.error(), "segments of up to 2147483648 scores, wanted at most 2^31 - 1");
}

}  // namespace
}  // namespace mirabelle::testing
