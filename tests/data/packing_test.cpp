#include "mirabelle/data/packing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "mirabelle/core/error.h"
#include "mirabelle/core/random.h"

namespace mirabelle {
namespace {

using Lengths = std::vector<int64_t>;
using Parts = std::vector<std::vector<int64_t>>;

/// Lengths 3 .. longest that are distributed as histories are: P(length >= n) = 3 / n.
Lengths zipf_lengths(int64_t count, int64_t longest, uint64_t seed) {
  Random random(random_key(seed, "lengths"));
  Lengths lengths;
  while (static_cast<int64_t>(lengths.size()) < count) {
    const double length = std::floor(3 / (1 - random.uniform()));
    lengths.push_back(static_cast<int64_t>(std::min(length, static_cast<double>(longest))));
  }
  return lengths;
}

int64_t total(const Lengths& lengths, const std::vector<int64_t>& part) {
  int64_t sum = 0;
  for (const int64_t sequence : part) sum += lengths[sequence];
  return sum;
}

void expect_whole(const Parts& parts, const Lengths& lengths, int64_t part_budget) {
  std::vector<int64_t> times(lengths.size());
  for (const std::vector<int64_t>& part : parts) {
    EXPECT_FALSE(part.empty());
    EXPECT_LE(total(lengths, part), part_budget);
    for (const int64_t sequence : part) ++times.at(sequence);
  }
  EXPECT_EQ(times, std::vector<int64_t>(lengths.size(), 1));
}

TEST(PackingTest, LongestGoFirstToTheLeastSumOfSquaresWithRoom) {
  // 6 | 5;  4 to 25 rather than 36;  3 to 36 rather than 41;  2 finds no room.
  EXPECT_EQ(pack_parts(Lengths{2, 3, 4, 5, 6}, 10, 2), (Parts{{4, 1}, {3, 2}, {0}}));
}

TEST(PackingTest, TheLastGroupTakesThePartsThatItNeedsAndIsEven) {
  // In two parts the 2 finds no room; in three: 6 | 5 | 4, 3 to 16, 2 to the first of 25 and 25.
  EXPECT_EQ(pack_parts(Lengths{2, 3, 4, 5, 6}, 10, 4), (Parts{{4}, {3, 0}, {2, 1}}));
  const Parts ones = pack_parts(Lengths(21, 1), 10, 8);
  ASSERT_EQ(ones.size(), 3u);
  for (const auto& part : ones) EXPECT_EQ(part.size(), 7u);
}

TEST(PackingTest, SequencesFurtherOnFillTheGapsOfAGroup) {
  EXPECT_EQ(pack_parts(Lengths{6, 7, 3, 4}, 10, 1), (Parts{{0, 3}, {1, 2}}));
}

TEST(PackingTest, WhatFoundNoRoomOpensTheNextGroup) {
  // The first group is 0 to 2, of which 2 has no room; then it comes before 3.
  EXPECT_EQ(pack_parts(Lengths{6, 6, 6, 6, 6}, 10, 2), (Parts{{0}, {1}, {2}, {3}, {4}}));
}

TEST(PackingTest, RanksThatTakeNeighbouringPartsGetAGiantEach) {
  // Four parts: the giants 0 and 1, and twice three of length 3.
  const Lengths lengths = {10, 10, 3, 3, 3, 3, 3, 3};
  const Parts parts = pack_parts(lengths, 10, 4);
  ASSERT_EQ(parts.size(), 4u);
  for (int half = 0; half < 2; ++half) {
    int64_t giants = 0;
    for (int i = 0; i < 2; ++i) giants += parts[2 * half + i].size() == 1;
    EXPECT_EQ(giants, 1) << "half " << half;
  }
  // Parts of one sequence each, 15, 14, .. 8 long: every half is 46 and every quarter 23.
  const Lengths descending = {15, 14, 13, 12, 11, 10, 9, 8};
  const Parts single = pack_parts(descending, 15, 8);
  for (const size_t size : {4, 2}) {
    for (size_t begin = 0; begin < 8; begin += size) {
      int64_t sum = 0;
      for (size_t i = begin; i < begin + size; ++i) sum += total(descending, single.at(i));
      EXPECT_EQ(sum, static_cast<int64_t>(23 * size / 2)) << size << " from " << begin;
    }
  }
}

TEST(PackingTest, FirstFitTakesTheOldestOpenPartWithRoom) {
  EXPECT_EQ(pack_first_fit(Lengths{6, 7, 3, 4}, 10), (Parts{{0, 2}, {1}, {3}}));
  EXPECT_EQ(pack_first_fit(Lengths{7, 6, 4}, 10), (Parts{{1, 2}, {0}}));  // full ones are closed
  Lengths lengths(17, 6);  // the 17th closes the first
  lengths.push_back(4);
  const Parts parts = pack_first_fit(lengths, 10);
  EXPECT_EQ(parts[0], (std::vector<int64_t>{0}));
  EXPECT_EQ(parts[1], (std::vector<int64_t>{1, 17}));
  expect_whole(parts, lengths, 10);
}

TEST(PackingTest, ImbalanceIsTheMeanOverGroupsOfLargestByMean) {
  const Lengths lengths{1, 2, 3, 4};
  const Parts parts{{0, 1}, {2}, {3}};  // squares 5, 9, 16
  EXPECT_DOUBLE_EQ(imbalance(parts, lengths, 1), 1);
  EXPECT_DOUBLE_EQ(imbalance(parts, lengths, 2), (9.0 / 7 + 1) / 2);
  EXPECT_DOUBLE_EQ(imbalance(parts, lengths, 3), 1.6);
  EXPECT_DOUBLE_EQ(imbalance(parts, lengths, 100), 1.6);
  EXPECT_DOUBLE_EQ(imbalance(Parts{}, Lengths{}, 4), 1);
}

TEST(PackingTest, EverySequenceIsInOnePartWithinTheBudget) {
  constexpr int64_t kBudget = 100;
  for (const int64_t count : {0, 1, 2, 7, 1000}) {
    Lengths giant_first(count, 1), giant_last(count, 3);
    if (count > 0) giant_first.front() = giant_last.back() = kBudget;
    Lengths alternating(count, 99);
    for (int64_t i = 0; i < count; i += 2) alternating[i] = 2;
    for (const Lengths& lengths :
         {giant_first, giant_last, alternating, Lengths(count, 1), Lengths(count, 60),
          Lengths(count, kBudget), zipf_lengths(count, kBudget, 1)}) {
      expect_whole(pack_first_fit(lengths, kBudget), lengths, kBudget);
      for (const int64_t parts_per_group : {1, 2, 7, 8, 64, 4096}) {
        const Parts parts = pack_parts(lengths, kBudget, parts_per_group);
        expect_whole(parts, lengths, kBudget);
        EXPECT_EQ(parts, pack_parts(lengths, kBudget, parts_per_group));
      }
    }
  }
}

TEST(PackingTest, EqualLengthsArePerfectlyEven) {
  const Lengths lengths(64, 25);
  const Parts parts = pack_parts(lengths, 100, 8);
  EXPECT_EQ(parts.size(), 16u);
  EXPECT_DOUBLE_EQ(imbalance(parts, lengths, 8), 1);
  const Lengths ones(1000, 1);
  EXPECT_EQ(pack_parts(ones, 10, 4).size(), 100u);
  EXPECT_DOUBLE_EQ(imbalance(pack_parts(ones, 10, 4), ones, 4), 1);
}

TEST(PackingTest, AGiantGetsOnlyWhatTheOthersCannotHold) {
  for (const int64_t ones : {900, 940}) {
    Lengths lengths(ones + 1, 1);
    lengths[17] = 60;
    const Parts parts = pack_parts(lengths, 100, 10);
    ASSERT_EQ(parts.size(), 10u);
    EXPECT_EQ(parts[0].front(), 17);
    EXPECT_EQ(static_cast<int64_t>(parts[0].size()), 1 + ones - 900);
    for (size_t part = 1; part < 10; ++part) EXPECT_EQ(parts[part].size(), 100u);
  }
}

TEST(PackingTest, StepsOfRandomLengthsAreEvenAndAsFullAsByFirstFit) {
  const Lengths lengths = zipf_lengths(65'536, 64, 2);
  const Parts first_fit = pack_first_fit(lengths, 512);
  for (const int64_t parts_per_group : {1, 2, 8, 64, 4096}) {
    const Parts parts = pack_parts(lengths, 512, parts_per_group);
    expect_whole(parts, lengths, 512);
    EXPECT_LE(static_cast<double>(parts.size()), 1.001 * static_cast<double>(first_fit.size()))
        << parts_per_group;
    EXPECT_LT(imbalance(parts, lengths, parts_per_group), 1.05) << parts_per_group;
    if (parts_per_group > 1) {
      EXPECT_GT(imbalance(first_fit, lengths, parts_per_group), 1.1) << parts_per_group;
    }
  }
}

TEST(PackingTest, RefusesWhatDoesNotGoIntoAPart) {
  EXPECT_THROW(pack_parts(Lengths{3, 11}, 10, 2), Error);
  EXPECT_THROW(pack_parts(Lengths{3, 0}, 10, 2), Error);
  EXPECT_THROW(pack_parts(Lengths{3}, 10, 0), Error);
  EXPECT_THROW(pack_first_fit(Lengths{11}, 10), Error);
  EXPECT_THROW(pack_first_fit(Lengths{0}, 10), Error);
}

}  // namespace
}  // namespace mirabelle
