#include "mirabelle/core/random.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

namespace mirabelle {
namespace {

uint64_t key_of(uint32_t word0, uint32_t word1) { return uint64_t{word1} << 32 | word0; }

// The known-answer vectors that the authors of Philox publish with Random123 (kat_vectors, lines
// "philox4x32 10").
TEST(PhiloxTest, GivesThePublishedAnswers) {
  EXPECT_EQ(philox(0, {0, 0, 0, 0}),
            (PhiloxCounter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox(~uint64_t{0}, {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}),
            (PhiloxCounter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(
      philox(key_of(0xa4093822, 0x299f31d0), {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}),
      (PhiloxCounter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(RandomKeyTest, DiffersForSeedPurposeAndIndices) {
  const std::set<uint64_t> keys = {random_key(1, "dropout"),
                                   random_key(2, "dropout"),
                                   random_key(1, "weights"),
                                   random_key(1, "dropout", {0}),
                                   random_key(1, "dropout", {1}),
                                   random_key(1, "dropout", {0, 0}),
                                   random_key(1, "dropout", {0, 1}),
                                   random_key(1, "dropout", {1, 0}),
                                   random_key(1, "dropou", {'t'}),
                                   random_key(1, ""),
                                   random_key(0, ""),
                                   random_key(1, "dropout", {-1})};
  EXPECT_EQ(keys.size(), 12u);
  EXPECT_EQ(random_key(7, "a", {1, 2}), random_key(7, "a", {1, 2}));
}

TEST(RandomNormalTest, HasTheMomentsOfTheNormalDistribution) {
  const int64_t n = 200000;
  double sum = 0, squares = 0, cubes = 0, fourths = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double x = random_normal(42, i);
    sum += x, squares += x * x, cubes += x * x * x, fourths += x * x * x * x;
  }
  const double five_deviations = 5 / std::sqrt(static_cast<double>(n));
  EXPECT_NEAR(sum / n, 0, five_deviations);
  EXPECT_NEAR(squares / n, 1, five_deviations * std::sqrt(2));
  EXPECT_NEAR(cubes / n, 0, five_deviations * std::sqrt(15));
  EXPECT_NEAR(fourths / n, 3, five_deviations * std::sqrt(96));
}

TEST(RandomNormalTest, IsAFunctionOfKeyAndElement) {
  EXPECT_EQ(random_normal(1, 5), random_normal(1, 5));
  EXPECT_NE(random_normal(1, 5), random_normal(1, 6));
  EXPECT_NE(random_normal(1, 5), random_normal(2, 5));
  EXPECT_NE(random_normal(1, 5), random_normal(1, 5 + (int64_t{1} << 32)));
}

TEST(RandomTest, SameKeyGivesTheSameSequence) {
  Random first(9), second(9), other(10);
  bool differs = false;
  for (int i = 0; i < 100; ++i) {
    const uint64_t value = first.next();
    EXPECT_EQ(value, second.next());
    differs |= value != other.next();
  }
  EXPECT_TRUE(differs);
}

TEST(RandomTest, UniformFillsTheUnitIntervalEvenly) {
  Random random(3);
  std::vector<int> bins(10, 0);
  for (int i = 0; i < 100000; ++i) {
    const double u = random.uniform();
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    ++bins[static_cast<size_t>(u * 10)];
  }
  for (int count : bins) EXPECT_NEAR(count, 10000, 500);
}

TEST(RandomTest, BelowGivesEachNumberEquallyOften) {
  Random random(3);
  std::vector<int> counts(7, 0);
  for (int i = 0; i < 70000; ++i) ++counts.at(random.below(7));
  for (int count : counts) EXPECT_NEAR(count, 10000, 500);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(random.below(1), 0);
}

TEST(RandomTest, NormalHasMeanZeroAndDeviationOne) {
  Random random(3);
  double sum = 0, squares = 0;
  for (int i = 0; i < 100000; ++i) {
    const double x = random.normal();
    sum += x, squares += x * x;
  }
  EXPECT_NEAR(sum / 100000, 0, 0.016);
  EXPECT_NEAR(squares / 100000, 1, 0.023);
}

TEST(RandomTest, ShuffleGivesEveryPermutationEquallyOften) {
  Random random(3);
  std::vector<std::vector<int>> seen;
  for (int i = 0; i < 24000; ++i) {
    std::vector<int> values{0, 1, 2, 3};
    random.shuffle(values);
    seen.push_back(values);
  }
  std::vector<int> values{0, 1, 2, 3};
  do {
    EXPECT_NEAR(std::count(seen.begin(), seen.end(), values), 1000, 160);
  } while (std::next_permutation(values.begin(), values.end()));
}

TEST(RandomTest, ShuffleTakesNothingAndOne) {
  Random random(3);
  std::vector<int> nothing, one{5};
  random.shuffle(nothing);
  random.shuffle(one);
  EXPECT_TRUE(nothing.empty());
  EXPECT_EQ(one, std::vector<int>{5});
}

}  // namespace
}  // namespace mirabelle
