#pragma once

#include <nlohmann/json.hpp>

#include "mirabelle/data/corpus.h"

namespace mirabelle {

/// How training would pack a corpus (the options of BatchLoader).
struct PackingOptions {
  int64_t part_tokens = 2048;
  int64_t parts_per_step = 8;
  int64_t num_levels = 4;  ///< tokens per item
  int64_t max_sequence_tokens = 1024;
};

/// What there is to know about a corpus before training on it, as one JSON object:
///   dataset, split (its manifest entry), split_hash, tie_policy
///   users, items, events, shards, bytes
///   history_length   {min, p10, median, p90, p99, max, mean}
///   repeated_events  events of an item that the same history has had before
///   train_events, validation_targets, test_targets
///   unseen_validation_targets, unseen_test_targets   of items that no training part holds
///   items_without_events, items_without_training
///   popularity       {top_1_percent, top_10_percent, gini}: shares of all events, and how unequal
///                    (0 = all items alike, 1 = one item has everything)
///   timestamps       {first, last, unknown}, or null if the corpus has none
///   columns          {name: {min, max, mean, missing}}
///   features         [{name, dim}]
///   packing          {part_tokens, parts_per_step, num_levels, max_sequence_tokens, sequences,
///                    first_fit, balanced}, or null without training events. The last two are
///                    {parts, fill, imbalance} by pack_first_fit and pack_parts (data/packing.h):
///                    fill is the share of the parts' tokens that is used
/// Reads every shard once, in bounded memory. Throws a kUsage Error if a part cannot hold a
/// sequence, or a sequence an item.
nlohmann::json corpus_stats(const Corpus& corpus, const PackingOptions& packing = {});

}  // namespace mirabelle
