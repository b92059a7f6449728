#pragma once

#include <functional>
#include <string>
#include <vector>

#include "mirabelle/comm/communicator.h"
#include "mirabelle/data/corpus.h"
#include "mirabelle/tokenizer/residual_kmeans.h"
#include "mirabelle/tokenizer/tokenizer_config.h"
#include "mirabelle/tokenizer/tokenizer_file.h"

namespace mirabelle {

/// Makes a tokenizer for the items of a corpus; k-means passes over them on `device`. `config_text`
/// is kept in the file. The result is the same on every rank, and for any number of ranks.
/// Collective, on host memory. Throws a kUsage Error if the
/// configuration names a feature source that the corpus lacks.
TokenizerFile build_tokenizer(const Corpus& corpus, const TokenizerConfig& config,
                              const std::string& config_text, Device device,
                              const Communicator& communicator,
                              const std::function<void(const KMeansProgress&)>& on_progress = {});

/// The same tokenizer with a table for the items of `corpus`, in that corpus's order. Items that
/// the old table has (by the data set's own ID) keep their codes; the others get codes from the
/// stored codebooks and the next free disambiguation code, in item order. The codebooks do not
/// change. New items are few: rank 0 computes, on the CPU.
///
/// Of kind item_id new items get new codes, so level and vocabulary grow: a model trained before
/// knows the new tokens only if they were in its padding, and untrained. For residual_kmeans the
/// vocabulary stays as it is, and trained models can be used at once.
///
/// Throws a kData Error if the corpus lacks an item of the table, if its feature sources differ, or
/// if the disambiguation codes of some group are used up. Collective.
struct AssignedTokenizer {
  TokenizerFile tokenizer;
  int64_t num_new_items = 0;
};
AssignedTokenizer assign_new_items(const TokenizerFile& old, const Corpus& corpus,
                                   int64_t batch_items, const Communicator& communicator);

/// Codes [num_items, num_levels] with one more level, which numbers the items of equal codes 0, 1,
/// 2,
/// ... in item order.
std::vector<int32_t> append_disambiguation_codes(const std::vector<int32_t>& codes,
                                                 int64_t num_levels);

/// The size of that level: twice what the largest group takes now, rounded up to a multiple of 8.
/// The room is for items that `assign_new_items` adds later: they mostly fall into large groups
/// (items without text, variants of one product), which have twice the room they need today; eight
/// codes let a group of one grow too. Unused codes cost a few rows of the vocabulary.
int64_t disambiguation_level_size(int64_t largest_group);

}  // namespace mirabelle
