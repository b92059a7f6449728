#include "mirabelle/tokenizer/code_quality.h"

#include <algorithm>

#include "mirabelle/core/error.h"

namespace mirabelle {
namespace {

constexpr int64_t kTop = 10;

double num_pairs(int64_t n) { return 0.5 * static_cast<double>(n) * static_cast<double>(n - 1); }

/// [num_items] how many other items share an item's first `length` codes.
std::vector<int32_t> num_sharing(const SemanticIds& ids, int64_t length) {
  std::vector<int32_t> result(ids.num_items());
  for_each_group(ids.all_codes(), length, [&](std::span<const int32_t> items) {
    for (const int32_t item : items) result[item] = static_cast<int32_t>(items.size()) - 1;
  });
  return result;
}

/// [num_items] the number of the group of items with the same first `length` codes.
std::vector<int32_t> group_numbers(const SemanticIds& ids, int64_t length) {
  std::vector<int32_t> result(ids.num_items());
  int32_t group = 0;
  for_each_group(ids.all_codes(), length, [&](std::span<const int32_t> items) {
    for (const int32_t item : items) result[item] = group;
    ++group;
  });
  return result;
}

/// Pairs of items in a group.
double pairs_in_groups(const CodeRows& codes) {
  double pairs = 0;
  for_each_group(codes, codes.num_levels, [&](std::span<const int32_t> items) {
    pairs += num_pairs(static_cast<int64_t>(items.size()));
  });
  return pairs;
}

}  // namespace

PrefixRecall prefix_recall(const SemanticIds& ids, int64_t num_code_levels,
                           const CoOccurrences& pairs) {
  const int64_t num_items = ids.num_items();
  PrefixRecall result;
  result.partners_share.resize(num_code_levels);
  std::vector<std::vector<int32_t>> sharing;  // by length
  for (int64_t length = 0; length <= num_code_levels; ++length) {
    sharing.push_back(num_sharing(ids, length));
    if (length == 0) continue;
    double num_alike = 0;
    for (const int32_t others : sharing.back()) num_alike += others;
    result.random_pairs_share.push_back(num_items > 1 ? num_alike / (2 * num_pairs(num_items))
                                                      : 0.0);
  }
  std::vector<int64_t> wanted(num_code_levels + 2);  // partners that share at least so many codes
  for (int64_t item = 0; item < num_items; ++item) {
    const int64_t begin = pairs.offsets[item];
    const int64_t size = std::min(pairs.offsets[item + 1] - begin, kTop);
    if (size == 0) continue;
    std::fill(wanted.begin(), wanted.end(), 0);
    const auto codes = ids.codes(item).first(num_code_levels);
    for (int64_t i = begin; i < begin + size; ++i) {
      const auto others = ids.codes(pairs.partners[i]).first(num_code_levels);
      const int64_t shared = std::ranges::mismatch(codes, others).in1 - codes.begin();
      for (int64_t length = 0; length <= shared; ++length) ++wanted[length];
    }
    double hits = 0;
    int64_t num_better = 0;
    for (int64_t length = num_code_levels; length >= 0 && num_better < kTop; --length) {
      const int64_t num_tied = sharing[length][item] - num_better;
      const auto num_wanted = static_cast<double>(wanted[length] - wanted[length + 1]);
      if (num_tied > 0) {
        hits += num_wanted * std::min(1.0, static_cast<double>(kTop - num_better) /
                                               static_cast<double>(num_tied));
      }
      num_better += num_tied;
    }
    result.recall_at_10 += hits / static_cast<double>(size);
    for (int64_t length = 1; length <= num_code_levels; ++length) {
      result.partners_share[length - 1] +=
          static_cast<double>(wanted[length]) / static_cast<double>(size);
    }
    ++result.num_items;
  }
  const auto count = static_cast<double>(std::max<int64_t>(1, result.num_items));
  result.recall_at_10 /= count;
  for (double& share : result.partners_share) share /= count;
  return result;
}

double code_agreement(const SemanticIds& a, const SemanticIds& b, int64_t num_codes) {
  MIRABELLE_CHECK_DATA(a.num_items() == b.num_items(), "tokenizers of ", a.num_items(), " and ",
                       b.num_items(), " items cannot be compared");
  MIRABELLE_CHECK_DATA(num_codes <= std::min(a.num_levels(), b.num_levels()), "tokenizers of ",
                       a.num_levels(), " and ", b.num_levels(), " levels cannot be compared by ",
                       num_codes, " codes");
  const std::vector<int32_t> groups_a = group_numbers(a, num_codes);
  const std::vector<int32_t> groups_b = group_numbers(b, num_codes);
  std::vector<int32_t> both;
  for (int64_t item = 0; item < a.num_items(); ++item) {
    both.insert(both.end(), {groups_a[item], groups_b[item]});
  }
  const double together = pairs_in_groups({both, 2});
  const double of_a = pairs_in_groups({groups_a, 1}), of_b = pairs_in_groups({groups_b, 1});
  const double all = num_pairs(a.num_items());
  const double by_chance = all > 0 ? of_a * of_b / all : 0.0;
  const double most = (of_a + of_b) / 2;
  return most == by_chance ? 1.0 : (together - by_chance) / (most - by_chance);
}

}  // namespace mirabelle
