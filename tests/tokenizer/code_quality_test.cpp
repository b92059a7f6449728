#include "mirabelle/tokenizer/code_quality.h"

#include <gtest/gtest.h>

#include <numeric>

#include "mirabelle/core/random.h"
#include "support/errors.h"

namespace mirabelle::testing {
namespace {

/// One level more, which numbers the items.
SemanticIds random_ids(int64_t num_items, std::vector<int64_t> level_sizes, uint64_t seed) {
  Random random(random_key(seed, "ids"));
  std::vector<int32_t> codes;
  for (int64_t item = 0; item < num_items; ++item) {
    for (int64_t size : level_sizes) codes.push_back(static_cast<int32_t>(random.below(size)));
    codes.push_back(static_cast<int32_t>(item));
  }
  level_sizes.push_back(std::max<int64_t>(1, num_items));
  return SemanticIds(std::move(level_sizes), std::move(codes));
}

CoOccurrences random_pairs(int64_t num_items, int64_t max_partners, uint64_t seed) {
  Random random(random_key(seed, "pairs"));
  CoOccurrences pairs;
  pairs.offsets.push_back(0);
  for (int64_t item = 0; item < num_items; ++item) {
    std::vector<int32_t> others(num_items);
    std::iota(others.begin(), others.end(), 0);
    others.erase(others.begin() + item);
    random.shuffle(others);
    others.resize(std::min<size_t>(others.size(), random.below(max_partners + 1)));
    pairs.partners.insert(pairs.partners.end(), others.begin(), others.end());
    pairs.weights.resize(pairs.partners.size(), 1);
    pairs.offsets.push_back(static_cast<int64_t>(pairs.partners.size()));
  }
  return pairs;
}

int64_t num_shared(const SemanticIds& ids, int64_t a, int64_t b, int64_t num_levels) {
  int64_t shared = 0;
  while (shared < num_levels && ids.codes(a)[shared] == ids.codes(b)[shared]) ++shared;
  return shared;
}

/// The definition, over all pairs: of every partner the probability to be among the first 10.
PrefixRecall oracle(const SemanticIds& ids, int64_t num_levels, const CoOccurrences& pairs) {
  PrefixRecall result;
  result.partners_share.resize(num_levels);
  result.random_pairs_share.resize(num_levels);
  const int64_t n = ids.num_items();
  for (int64_t item = 0; item < n; ++item) {
    for (int64_t other = 0; other < n; ++other) {
      for (int64_t l = 0; l < num_levels && other != item; ++l) {
        result.random_pairs_share[l] += num_shared(ids, item, other, num_levels) > l
                                            ? 1.0 / static_cast<double>(n * (n - 1))
                                            : 0.0;
      }
    }
    const int64_t begin = pairs.offsets[item];
    const int64_t size = std::min<int64_t>(10, pairs.offsets[item + 1] - begin);
    if (size == 0) continue;
    ++result.num_items;
    for (int64_t i = begin; i < begin + size; ++i) {
      const int64_t shared = num_shared(ids, item, pairs.partners[i], num_levels);
      double better = 0, equal = 0;
      for (int64_t other = 0; other < n; ++other) {
        if (other == item) continue;
        better += num_shared(ids, item, other, num_levels) > shared;
        equal += num_shared(ids, item, other, num_levels) == shared;
      }
      const double chance = std::clamp((10 - better) / equal, 0.0, 1.0);
      result.recall_at_10 += chance / static_cast<double>(size);
      for (int64_t l = 0; l < shared; ++l) {
        result.partners_share[l] += 1 / static_cast<double>(size);
      }
    }
  }
  const double count = static_cast<double>(std::max<int64_t>(1, result.num_items));
  result.recall_at_10 /= count;
  for (double& share : result.partners_share) share /= count;
  return result;
}

TEST(PrefixRecallTest, IsTheDefinitionOverAllPairs) {
  for (const auto& [num_items, max_partners] : std::vector<std::pair<int64_t, int64_t>>{
           {0, 1}, {1, 1}, {2, 1}, {9, 5}, {60, 3}, {150, 20}}) {
    for (const std::vector<int64_t>& sizes :
         {std::vector<int64_t>{3, 3, 2}, std::vector<int64_t>{1}, std::vector<int64_t>{40, 2}}) {
      const SemanticIds ids = random_ids(num_items, sizes, num_items);
      const CoOccurrences pairs = random_pairs(num_items, max_partners, num_items);
      const auto num_levels = static_cast<int64_t>(sizes.size());
      const PrefixRecall found = prefix_recall(ids, num_levels, pairs);
      const PrefixRecall expected = oracle(ids, num_levels, pairs);
      EXPECT_EQ(found.num_items, expected.num_items);
      EXPECT_NEAR(found.recall_at_10, expected.recall_at_10, 1e-12) << num_items;
      for (int64_t l = 0; l < num_levels; ++l) {
        EXPECT_NEAR(found.partners_share[l], expected.partners_share[l], 1e-12);
        EXPECT_NEAR(found.random_pairs_share[l], expected.random_pairs_share[l], 1e-12);
      }
    }
  }
}

TEST(PrefixRecallTest, IsHandComputedForTwoGroups) {
  // Items 0 .. 4 have code 0, items 5 .. 24 code 1. Item 0's partners are 1 and 5: it finds 1 for
  // certain, and 5 with the chance 6 / 20. Item 5's are 6 and 0: 6 with the chance 10 / 19, 0
  // never.
  std::vector<int32_t> codes;
  for (int32_t item = 0; item < 25; ++item) codes.insert(codes.end(), {item < 5 ? 0 : 1, item});
  CoOccurrences pairs{std::vector<int64_t>(26, 4), {1, 5, 6, 0}, {2, 1, 2, 1}};
  pairs.offsets[0] = 0;
  for (int64_t item = 1; item <= 5; ++item) pairs.offsets[item] = 2;
  const PrefixRecall found = prefix_recall(SemanticIds({2, 25}, codes), 1, pairs);
  EXPECT_EQ(found.num_items, 2);
  EXPECT_NEAR(found.recall_at_10, ((1 + 0.3) / 2 + 10 / 19.0 / 2) / 2, 1e-12);
  EXPECT_NEAR(found.partners_share[0], 0.5, 1e-12);
  EXPECT_NEAR(found.random_pairs_share[0], (5 * 4 + 20 * 19) / (25 * 24.0), 1e-12);
}

SemanticIds two_levels(const std::vector<int32_t>& first) {
  std::vector<int32_t> codes;
  for (size_t item = 0; item < first.size(); ++item) {
    codes.insert(codes.end(), {first[item], static_cast<int32_t>(item)});
  }
  return SemanticIds({16, 16}, codes);
}

TEST(CodeAgreementTest, IsTheAdjustedRandIndex) {
  // Groups {012}{345} and {01}{23}{45}: 2 pairs together in both, 6 and 3 in each, of 15; by chance
  // 6 * 3 / 15 = 1.2, at most 4.5.
  const SemanticIds a = two_levels({0, 0, 0, 1, 1, 1}), b = two_levels({5, 5, 2, 2, 9, 9});
  EXPECT_NEAR(code_agreement(a, b, 1), (2 - 1.2) / (4.5 - 1.2), 1e-12);
  EXPECT_NEAR(code_agreement(b, a, 1), (2 - 1.2) / (4.5 - 1.2), 1e-12);
}

TEST(CodeAgreementTest, NamesOfCodesDoNotMatter) {
  const SemanticIds a = two_levels({0, 0, 1, 2, 1}), b = two_levels({7, 7, 3, 4, 3});
  EXPECT_EQ(code_agreement(a, b, 1), 1.0);
  EXPECT_EQ(code_agreement(a, b, 2), 1.0) << "every item alone";
}

TEST(CodeAgreementTest, IsAboutZeroByChance) {
  const SemanticIds a = random_ids(3000, {8}, 1), b = random_ids(3000, {8}, 2);
  EXPECT_NEAR(code_agreement(a, b, 1), 0, 0.005);
}

TEST(CodeAgreementTest, OfFewItemsIsOne) {
  EXPECT_EQ(code_agreement(two_levels({}), two_levels({}), 1), 1.0);
  EXPECT_EQ(code_agreement(two_levels({1}), two_levels({2}), 1), 1.0);
}

TEST(CodeAgreementTest, RefusesTokenizersOfOtherShapes) {
  expect_error(ErrorKind::kData, "tokenizers of 1 and 2 items cannot be compared", [] {
    code_agreement(two_levels({1}), two_levels({1, 1}), 1);
  });
  expect_error(ErrorKind::kData, "cannot be compared by 3 codes",
               [] { code_agreement(two_levels({1}), two_levels({1}), 3); });
}

}  // namespace
}  // namespace mirabelle::testing
