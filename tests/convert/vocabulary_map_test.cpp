#include "mirabelle/convert/vocabulary_map.h"

#include <gtest/gtest.h>

#include <cmath>

#include "support/errors.h"

namespace mirabelle {
namespace {

/// Row r of the embedding is [r, 10 r, 7]; the norm is [1, 2, 3].
class NumberedRows : public TensorSource {
 public:
  explicit NumberedRows(int64_t num_rows) {
    tensors_["model.embed_tokens.weight"] = {{num_rows, 3}, "float32"};
    tensors_["model.norm.weight"] = {{3}, "float32"};
  }
  const std::map<std::string, TensorInfo>& tensors() const override { return tensors_; }
  void read_rows(const std::string& name, int64_t begin, std::span<float> out) const override {
    ++num_reads_;
    for (size_t i = 0; i < out.size(); ++i) {
      const float row = static_cast<float>(begin + static_cast<int64_t>(i) / 3);
      out[i] = name == "model.norm.weight" ? static_cast<float>(begin + 1 + i)
               : i % 3 == 0                ? row
               : i % 3 == 1                ? 10 * row
                                           : 7;
    }
  }
  mutable int num_reads_ = 0;

 private:
  std::map<std::string, TensorInfo> tensors_;
};

std::vector<float> rows_of(const TensorSource& source, int64_t begin, int64_t count) {
  std::vector<float> rows(count * 3);
  source.read_rows("model.embed_tokens.weight", begin, rows);
  return rows;
}

TEST(VocabularyMapTest, FollowsTheNamesOfTheRanges) {
  const std::vector<TokenRange> old = {
      {"special", 0, 1}, {"level_0", 1, 3}, {"level_1", 4, 2}, {"padding", 6, 2}};
  const std::vector<TokenRange> grown = {
      {"text", 0, 2}, {"special", 2, 1}, {"level_0", 3, 3}, {"level_1", 6, 4}, {"padding", 10, 2}};
  EXPECT_EQ(map_vocabulary(grown, old),
            (std::vector<int64_t>{kNewRow, kNewRow, 0, 1, 2, 3, 4, 5, kNewRow, kNewRow, kZeroRow,
                                  kZeroRow}));
  EXPECT_EQ(map_vocabulary(old, grown),
            (std::vector<int64_t>{2, 3, 4, 5, 6, 7, kZeroRow, kZeroRow}));
  EXPECT_TRUE(map_vocabulary({}, old).empty());
}

TEST(RemappedVocabularyTest, MovesRowsAndLeavesOtherTensorsAlone) {
  const NumberedRows source(6);
  const RemappedVocabulary mapped(source, {4, 5, 1, kZeroRow}, 0);
  EXPECT_EQ(mapped.info("model.embed_tokens.weight").shape, (Shape{4, 3}));
  EXPECT_EQ(mapped.info("model.norm.weight").shape, (Shape{3}));
  EXPECT_EQ(rows_of(mapped, 0, 4), (std::vector<float>{4, 40, 7, 5, 50, 7, 1, 10, 7, 0, 0, 0}));
  EXPECT_EQ(rows_of(mapped, 1, 2), (std::vector<float>{5, 50, 7, 1, 10, 7}));
  std::vector<float> norm(2);
  mapped.read_rows("model.norm.weight", 1, norm);
  EXPECT_EQ(norm, (std::vector<float>{2, 3}));
}

TEST(RemappedVocabularyTest, ReadsNeighboursAtOnce) {
  const NumberedRows source(1000);
  std::vector<int64_t> rows;
  for (int64_t i = 100; i < 900; ++i) rows.push_back(i);
  const RemappedVocabulary mapped(source, rows, 0);
  rows_of(mapped, 0, 800);
  EXPECT_EQ(source.num_reads_, 1);
}

// Used are the rows 0, 2 and 4: means 2, 20 and 7, deviations sqrt(8 / 3), 10 sqrt(8 / 3) and 0.
TEST(RemappedVocabularyTest, NewRowsAreDrawnAroundTheMeanOfTheUsedOnes) {
  constexpr int64_t kNew = 4000;
  const NumberedRows source(6);
  std::vector<int64_t> map = {0, 2, 4};
  map.resize(3 + kNew, kNewRow);
  const RemappedVocabulary mapped(source, map, 5);
  const std::vector<float> rows = rows_of(mapped, 3, kNew);
  double sums[3] = {}, squares[3] = {};
  for (int64_t i = 0; i < 3 * kNew; ++i) sums[i % 3] += rows[i];
  const double means[3] = {2, 20, 7}, deviation = std::sqrt(8.0 / 3);
  for (int64_t i = 0; i < 3 * kNew; ++i) squares[i % 3] += std::pow(rows[i] - means[i % 3], 2);
  EXPECT_NEAR(sums[0] / kNew, 2, 0.02);
  EXPECT_NEAR(sums[1] / kNew, 20, 0.2);
  EXPECT_EQ(squares[2], 0);
  EXPECT_NEAR(std::sqrt(squares[0] / kNew), 0.1 * deviation, 0.01);
  EXPECT_NEAR(std::sqrt(squares[1] / kNew), deviation, 0.1);

  EXPECT_EQ(rows_of(mapped, 9, 2), std::vector(rows.begin() + 18, rows.begin() + 24));
  EXPECT_EQ(rows_of(RemappedVocabulary(source, map, 5), 3, kNew), rows);
  EXPECT_NE(rows_of(RemappedVocabulary(source, map, 6), 3, kNew), rows);
}

TEST(RemappedVocabularyTest, RefusesRowsThatTheSourceLacks) {
  const NumberedRows source(3);
  testing::expect_error(ErrorKind::kData, "[3, 3], wanted at least 4 rows",
                        [&] { RemappedVocabulary(source, {3}, 0); });
}

}  // namespace
}  // namespace mirabelle
