#pragma once

#include <nlohmann/json.hpp>

#include "mirabelle/data/corpus.h"

namespace mirabelle {

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
/// Reads every shard once, in bounded memory.
nlohmann::json corpus_stats(const Corpus& corpus);

}  // namespace mirabelle
