#include "mirabelle/tokenizer/code_order.h"

#include <gtest/gtest.h>

#include <map>

#include "mirabelle/core/random.h"

namespace mirabelle {
namespace {

/// Beside a map of prefixes.
void expect_groups_of_a_map(const std::vector<int32_t>& level_sizes, int64_t num_items) {
  const auto num_levels = static_cast<int64_t>(level_sizes.size());
  Random random(random_key(num_items, "codes"));
  std::vector<int32_t> codes;
  for (int64_t i = 0; i < num_items * num_levels; ++i) {
    codes.push_back(static_cast<int32_t>(random.below(level_sizes[i % num_levels])));
  }
  for (int64_t length = 0; length <= num_levels; ++length) {
    std::map<std::vector<int32_t>, std::vector<int32_t>> expected;
    for (int64_t item = 0; item < num_items; ++item) {
      const auto begin = codes.begin() + item * num_levels;
      expected[{begin, begin + length}].push_back(static_cast<int32_t>(item));
    }
    std::vector<std::vector<int32_t>> groups, groups_of_map;
    for_each_group({codes, num_levels}, length, [&](std::span<const int32_t> items) {
      groups.emplace_back(items.begin(), items.end());
    });
    for (const auto& [prefix, items] : expected) groups_of_map.push_back(items);
    EXPECT_EQ(groups, groups_of_map) << num_items << " items, " << length << " codes";
  }
}

TEST(CodeOrderTest, GroupsAreThoseOfAMapOfPrefixes) {
  for (const int64_t num_items : {0, 1, 2, 1000}) {
    expect_groups_of_a_map({3, 4, 2}, num_items);
    expect_groups_of_a_map({1}, num_items);
  }
}

TEST(CodeOrderTest, HoldsForMoreBitsThanAKeyHas) {
  constexpr int32_t kMany = 1 << 30;
  expect_groups_of_a_map({2, kMany, 3, kMany, kMany, 2, kMany, 2}, 500);
  expect_groups_of_a_map({kMany, 2, 2, 2, kMany, 1, kMany}, 1);
  expect_groups_of_a_map(std::vector<int32_t>(70, 2), 300);
}

}  // namespace
}  // namespace mirabelle
