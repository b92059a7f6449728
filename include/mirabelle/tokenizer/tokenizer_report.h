#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <ostream>
#include <vector>

#include "mirabelle/tokenizer/co_occurrence.h"
#include "mirabelle/tokenizer/semantic_id.h"

namespace mirabelle {

/// How good semantic IDs are. `num_code_levels` counts the levels without the disambiguation code;
/// `errors` are the mean squared residuals before and after each of them, or empty if the codes do
/// not come from features.
///
///   num_items
///   unique_items       fraction of items whose codes, without the disambiguation code, are theirs
///                      alone
///   distinct_codes     different codes / items
///   levels             of each but the disambiguation code:
///     size, used       codes that exist, that some item has
///     entropy_bits     of the distribution of items over codes; at most log2(size)
///     entropy          the same / log2(size), 1 if size is 1
///     relative_error   residual / features, mean squares, after this level; absent without errors
///     counts           items of each code
///   collisions         [{items, ids}]: so many IDs stand for so many items each, without the
///                      disambiguation code; ascending
///   disambiguation     absent without such a level
///     size             codes that exist
///     largest          codes that the largest group of items with equal codes takes
///   shared             absent unless several items have one semantic ID
///     ids, items       IDs of several items, and how many items have them
///     largest          items of the ID that has most
///   vocab_size, padded_vocab_size
/// A build adds
///   collision_rule     tokenizer.collisions
///   unique_nearest     fraction of items whose nearest codes are theirs alone, before the rule
///                      moves any
///   moved_items        items whose last code is not the nearest; the last level's error is of the
///                      nearest codes
///   prefix_recall      add_prefix_recall
/// and an assignment of new items
///   collision_rule
///   assigned           {new_items, relative_error}
nlohmann::json tokenizer_report(const SemanticIds& ids, int64_t num_code_levels,
                                const std::vector<double>& errors);

/// Whether items that are met together share codes; nothing if no items are.
///   prefix_recall
///     items                 with partners
///     recall@10             PrefixRecall
///     partners_share        by number of leading codes, from 1
///     random_pairs_share
void add_prefix_recall(nlohmann::json& report, const SemanticIds& ids, int64_t num_code_levels,
                       const CoOccurrences& pairs);

/// As tables for people.
void print_tokenizer_report(const nlohmann::json& report, std::ostream& out);

}  // namespace mirabelle
