#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "mirabelle/comm/communicator.h"
#include "mirabelle/tokenizer/code_order.h"
#include "mirabelle/tokenizer/item_rows.h"
#include "mirabelle/tokenizer/residual_quantizer.h"

namespace mirabelle {

// What becomes of items whose codes are equal, by tokenizer.collisions:
//
//   disambiguation_code  one more level numbers them
//   nearest_free         all but one move, at the last level, to the nearest code that is free
//   balanced             the items of a prefix (all codes but the last) are spread over the last
//                        level's codes, so that each is used ceil(items / codes) times at most
//   shared               they keep their codes: several items have one semantic ID
//   item_code            one more level has a code for every item, so that a model can learn about
//                        each by itself
//
// Where a prefix has more items than the last level has codes, items are left that share their
// codes after nearest_free and balanced too; then there is a disambiguation code as well.

bool is_collision_rule(const std::string& name);

/// What moving items needs: the last level's codebook, and what the levels before it leave of the
/// items, [num_items, codebook.dim].
struct LastLevel {
  const Codebook& codebook;
  const ItemRows& residuals;
  int64_t batch_items;  ///< read at a time
};

/// What the levels but the last leave of `rows`. All arguments must live as long as the result.
ItemRows residuals_before_last(const ItemRows& rows, const std::vector<Codebook>& codebooks,
                               const std::vector<int32_t>& codes);

/// Rule nearest_free on codes [num_items, num_levels]. Of the items that share their codes the one
/// nearest to its last code stays (of equals the one of lower index). The others, nearest first,
/// each move to the nearest last code that no item of their prefix has (of equals the lower code);
/// if none is left, they stay where they are. Items with fixed[item] never move; `fixed` may be
/// empty: none is.
///
/// Only prefixes of which items share their codes are worked on, as many at a time as have 2^27
/// distances from items to codes (or one that has more); each such part reads their residuals once.
/// The ranks share the parts. The same result for any number of ranks and any batch_items.
/// Collective, on host memory.
void move_to_nearest_free(std::vector<int32_t>& codes, int64_t num_levels,
                          const std::vector<bool>& fixed, const LastLevel& last,
                          const Communicator& communicator);

/// Rule balanced on codes [num_items, num_levels]. A prefix of n items, one of whose last codes has
/// more than c = ceil(n / codebook.size) of them, is assigned anew: the transport plan P between
/// items (1 each) and codes (c at most) that minimises
///
///   sum_ij P_ij d_ij + epsilon sum_ij P_ij log P_ij,   epsilon = temperature * the mean distance,
///
/// with squared distances d (Sinkhorn's algorithm, Cuturi 2013, on logarithms; inequality for
/// the codes), then rounded: of all pairs the likeliest first, items get a code that still has
/// room. The lower the temperature, the nearer to the assignment of least total distance, and the
/// slower. Ranks and their contract as in move_to_nearest_free; of one prefix at a time every
/// distance takes 24 bytes more.
void balance_last_level(std::vector<int32_t>& codes, int64_t num_levels, double temperature,
                        const LastLevel& last, const Communicator& communicator);

/// numbers[item] that are -1 become the next numbers of the item's group (items of equal codes),
/// after those that are there, in item order: 0, 1, 2, ... in a group without any.
void number_items(std::vector<int32_t>& numbers, const CodeRows& codes);

/// Codes [num_items, num_levels] with one more level: `numbers` [num_items].
std::vector<int32_t> append_level(const CodeRows& codes, const std::vector<int32_t>& numbers);

/// The size of a level of disambiguation codes: twice what the largest group takes now, rounded up
/// to a multiple of 8. The room is for items that `assign_new_items` adds later: they mostly fall
/// into large groups (items without text, variants of one product), which have twice the room they
/// need today; eight codes let a group of one grow too. Unused codes cost a few rows of the
/// vocabulary.
int64_t disambiguation_level_size(int64_t largest_group);

/// [num_items] the rank of an item among those of equal codes: the most popular first, of equals
/// the one of lower index.
std::vector<int32_t> priorities_of(const CodeRows& codes, const std::vector<int64_t>& popularity);

}  // namespace mirabelle
