#pragma once

#include "mirabelle/comm/communicator.h"
#include "mirabelle/data/corpus.h"
#include "mirabelle/tokenizer/tokenizer_file.h"

namespace mirabelle {

struct AssignedTokenizer {
  TokenizerFile tokenizer;
  int64_t num_new_items = 0;
};

/// The same tokenizer with a table for the items of `corpus`, in that corpus's order. Items that
/// the old table has (by the data set's own ID) keep their IDs; the others get codes from the
/// stored codebooks, and where those are taken, what the tokenizer's rule for collisions gives
/// them:
///
///   disambiguation_code     the next free one, in item order
///   nearest_free, balanced  the nearest free last code (move_to_nearest_free, old items fixed); if
///                           there is none, the next free disambiguation code
///   shared                  they share the ID; all priorities follow the corpus anew
///   item_code               new codes, after the last one
///
/// The codebooks do not change. Co-occurrence features of new items are those of items that have
/// met none. New items are few: rank 0 gives them their nearest codes, on the CPU.
///
/// Of kind item_id, and by the rule item_code, the last level and the vocabulary grow: a model
/// trained before knows the new tokens only if they were in its padding, and untrained. For the
/// others the vocabulary stays as it is, and trained models can be used at once.
///
/// Throws a kData Error if the corpus lacks an item of the table, if its feature sources differ, or
/// if an item finds all codes taken, disambiguation codes included; it is named. Collective.
AssignedTokenizer assign_new_items(const TokenizerFile& old, const Corpus& corpus,
                                   int64_t batch_items, const Communicator& communicator);

}  // namespace mirabelle
