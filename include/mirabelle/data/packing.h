#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace mirabelle {

/// Packs sequences into parts of at most `part_budget` (in the unit of the lengths) such that the
/// parts of one optimizer step cost attention alike. result[part] lists indices into `lengths`.
///
/// Parts i * parts_per_group .. (i + 1) * parts_per_group - 1 form group i; only the last group may
/// have fewer. A group takes sequences in their order until its budget is used up, and deals them
/// out longest first, each to the part with the least sum of squared lengths among those that have
/// room for it; then sequences a little further on fill the gaps in the same way. What found no
/// room opens the next group. Sequences stay whole, so a group is uneven if one of them outweighs
/// the mean part, or if parts hold but a few; then at least its halves, quarters and so on are as
/// even as they can be, which are what ranks get that take several neighbouring parts.
///
/// Every sequence is in one part; no part is empty. A pure function of its arguments. Throws unless
/// parts_per_group is positive and every length in 1 .. part_budget.
std::vector<std::vector<int64_t>> pack_parts(std::span<const int64_t> lengths, int64_t part_budget,
                                             int64_t parts_per_group);

/// The same without balance, for comparison: each sequence goes to the oldest of the 16 open parts
/// that has room for it.
std::vector<std::vector<int64_t>> pack_first_fit(std::span<const int64_t> lengths,
                                                 int64_t part_budget);

/// How much longer the slowest part of a group takes than the mean one, by attention's work:
/// (largest / mean) sum of squared lengths over its parts, averaged over the groups. 1 is perfect,
/// and what no parts at all have.
double imbalance(std::span<const std::vector<int64_t>> parts, std::span<const int64_t> lengths,
                 int64_t parts_per_group);

}  // namespace mirabelle
