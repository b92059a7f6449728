#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "mirabelle/data/corpus.h"

namespace mirabelle {

/// Calls body(items) with the training part of users' histories, oldest event first: all that may
/// be counted without having seen a target. Reads block by block; of several ranks each takes
/// blocks of neighbouring users in turn.
void for_each_training_history(const Corpus& corpus,
                               const std::function<void(std::span<const int32_t> items)>& body,
                               int rank = 0, int num_ranks = 1);

/// [num_items] training events of each item.
std::vector<int64_t> count_training_events(const Corpus& corpus);

}  // namespace mirabelle
