#include "mirabelle/tokenizer/code_assigner.h"

#include <numeric>

#include "mirabelle/core/random.h"
#include "support/devices.h"
#include "support/errors.h"

namespace mirabelle::testing {
namespace {

constexpr int64_t kItems = 103, kDim = 21, kMaxItems = 40;

/// Whole numbers of so few bits that all arithmetic on them is exact.
std::vector<float> whole_numbers(int64_t n, uint64_t seed) {
  Random random(random_key(seed, "test"));
  std::vector<float> values(n);
  for (float& value : values) value = static_cast<float>(random.below(41) - 20);
  return values;
}

Codebook codebook_of(int64_t size, uint64_t seed) {
  return {size, kDim, whole_numbers(size * kDim, seed)};
}

class CodeAssignerTest : public DeviceTest {
 protected:
  void finish_level(int64_t size, uint64_t seed) {
    Random random(random_key(seed, "codes"));
    std::vector<int32_t> codes(kItems);
    for (int32_t& code : codes) code = static_cast<int32_t>(random.below(size));
    finished_.codebooks.push_back(codebook_of(size, seed));
    finished_.codes.push_back(std::move(codes));
  }
  /// The oracle of what the finished levels leave.
  std::vector<double> residual(int64_t item) const {
    std::vector<double> row(features_.begin() + item * kDim, features_.begin() + (item + 1) * kDim);
    for (size_t level = 0; level < finished_.codes.size(); ++level) {
      for (int64_t j = 0; j < kDim; ++j) {
        row[j] -= finished_.codebooks[level].rows[finished_.codes[level][item] * kDim + j];
      }
    }
    return row;
  }
  double squared_distance(int64_t item, const Codebook& codebook, int64_t code) const {
    const std::vector<double> row = residual(item);
    double sum = 0;
    for (int64_t j = 0; j < kDim; ++j) {
      sum += (row[j] - codebook.rows[code * kDim + j]) * (row[j] - codebook.rows[code * kDim + j]);
    }
    return sum;
  }
  int32_t nearest(int64_t item, const Codebook& codebook) const {
    int32_t best = 0;
    for (int32_t code = 1; code < codebook.size; ++code) {
      if (squared_distance(item, codebook, code) < squared_distance(item, codebook, best)) {
        best = code;
      }
    }
    return best;
  }

  /// A pass in which the second and third batch are added up.
  void expect_exact_pass(CodeAssigner& assigner, const Codebook& codebook) const {
    const std::vector<IndexRange> batches = {{3, 43}, {43, 44}, {44, 84}, {84, 103}, {0, 3}};
    std::vector<double> sums(codebook.size * kDim), expected_sums(codebook.size * kDim);
    std::vector<int64_t> counts(codebook.size), expected_counts(codebook.size);
    assigner.start_pass(codebook, batches);
    for (size_t i = 0; i < batches.size(); ++i) {
      if (i == 1) assigner.start_sums(sums.data(), counts.data());
      const AssignedBatch batch = assigner.next();
      if (i == 2) assigner.finish_sums();
      for (int64_t item = batches[i].begin; item < batches[i].end; ++item) {
        const int32_t code = batch.codes[item - batches[i].begin];
        ASSERT_EQ(code, nearest(item, codebook)) << "item " << item;
        ASSERT_EQ(batch.distances[item - batches[i].begin], squared_distance(item, codebook, code))
            << "item " << item;
        if (i != 1 && i != 2) continue;
        ++expected_counts[code];
        const std::vector<double> row = residual(item);
        for (int64_t j = 0; j < kDim; ++j) expected_sums[code * kDim + j] += row[j];
      }
    }
    EXPECT_EQ(sums, expected_sums);
    EXPECT_EQ(counts, expected_counts);
    expect_error("the pass has no more batches", [&] { assigner.next(); });
  }

  const std::vector<float> features_ = whole_numbers(kItems * kDim, 1);
  ItemRows rows_{kItems, kDim, [this](int64_t begin, int64_t end, float* out) {
                   ASSERT_LE(end - begin, kMaxItems);
                   std::copy(features_.begin() + begin * kDim, features_.begin() + end * kDim, out);
                 }};
  ResidualKMeans finished_;
};
MIRABELLE_INSTANTIATE_DEVICES(CodeAssignerTest);

TEST_P(CodeAssignerTest, GivesCodesDistancesAndSumsOfEveryLevel) {
  CodeAssigner assigner(rows_, finished_, kMaxItems, 16, 3, GetParam());
  expect_exact_pass(assigner, codebook_of(16, 2));
  expect_exact_pass(assigner, codebook_of(1, 3));
  finish_level(16, 4);
  expect_exact_pass(assigner, codebook_of(5, 5));
  finish_level(3, 6);
  expect_exact_pass(assigner, codebook_of(16, 7));
}

TEST_P(CodeAssignerTest, TellsTheResidualOfAnItem) {
  CodeAssigner assigner(rows_, finished_, kMaxItems, 16, 2, GetParam());
  for (int level = 0; level < 3; ++level) {
    for (const int64_t item : {0, 50, 102}) {
      const std::vector<float> row = assigner.residual_of(item);
      EXPECT_EQ(std::vector<double>(row.begin(), row.end()), residual(item)) << "item " << item;
    }
    expect_exact_pass(assigner, codebook_of(7, 8 + level));
    if (level < 2) finish_level(16, 11 + level);
  }
}

TEST_P(CodeAssignerTest, APassMayHaveNoBatches) {
  CodeAssigner assigner(rows_, finished_, kMaxItems, 16, 2, GetParam());
  const Codebook codebook = codebook_of(7, 14);
  const std::vector<IndexRange> none;
  std::vector<double> sums(7 * kDim);
  std::vector<int64_t> counts(7);
  assigner.start_pass(codebook, none);
  assigner.start_sums(sums.data(), counts.data());
  assigner.finish_sums();
  EXPECT_EQ(std::accumulate(sums.begin(), sums.end(), 0.0), 0);
  EXPECT_EQ(std::accumulate(counts.begin(), counts.end(), int64_t{0}), 0);
  expect_error("the pass has no more batches", [&] { assigner.next(); });
}

}  // namespace
}  // namespace mirabelle::testing
