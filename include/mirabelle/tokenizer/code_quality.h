#pragma once

#include <cstdint>
#include <vector>

#include "mirabelle/tokenizer/co_occurrence.h"
#include "mirabelle/tokenizer/semantic_id.h"

namespace mirabelle {

/// Whether items that are met together share leading codes.
struct PrefixRecall {
  int64_t num_items = 0;  ///< that have partners; the figures are means over them
  double recall_at_10 = 0;
  std::vector<double> partners_share;      ///< [num_code_levels] of an item's partners, those that
                                           ///< share at least its first 1, 2, ... codes
  std::vector<double> random_pairs_share;  ///< the same of all pairs of different items
};

/// Of each item with partners the (up to) 10 heaviest are wanted. All other items are ranked by how
/// many leading codes, of the first `num_code_levels`, they share with it; recall@10 is the share
/// of the wanted ones among the first 10. Ties count in expectation over all their orders: of t
/// equals of which k are wanted and r still fit into the list, k min(1, r / t). Exact; time grows
/// with the partners, memory with the items and levels.
PrefixRecall prefix_recall(const SemanticIds& ids, int64_t num_code_levels,
                           const CoOccurrences& pairs);

/// How far two tokenizers group the same items alike by their first `num_codes` codes, whatever the
/// codes are called: the adjusted Rand index (Hubert & Arabie 1985). 1: the same groups; about 0:
/// as alike as groups of these sizes are by chance. Throws a kData Error unless both have the same
/// number of items and so many levels.
double code_agreement(const SemanticIds& a, const SemanticIds& b, int64_t num_codes);

}  // namespace mirabelle
