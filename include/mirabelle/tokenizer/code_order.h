#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

namespace mirabelle {

/// Codes of many items, row-major [num_items, num_levels]; none is negative.
struct CodeRows {
  std::span<const int32_t> codes;
  int64_t num_levels;

  int64_t num_items() const { return static_cast<int64_t>(codes.size()) / num_levels; }
  std::span<const int32_t> row(int64_t item) const {
    return codes.subspan(item * num_levels, num_levels);
  }
};

/// All items in the lexicographic order of their first `length` codes; items of equal ones ascend.
/// Sorts integers, of which memory holds 16 bytes for every item.
std::vector<int32_t> sorted_by_codes(const CodeRows& codes, int64_t length);

/// Calls body(std::span<const int32_t> items) for every group of items whose first `length` codes
/// are equal, in that order.
template <typename Body>
void for_each_group(const CodeRows& codes, int64_t length, const Body& body) {
  const std::vector<int32_t> order = sorted_by_codes(codes, length);
  for (size_t begin = 0, end = 0; begin < order.size(); begin = end) {
    const auto first = codes.row(order[begin]).first(length);
    while (end < order.size() && std::ranges::equal(first, codes.row(order[end]).first(length))) {
      ++end;
    }
    body(std::span<const int32_t>(order).subspan(begin, end - begin));
  }
}

}  // namespace mirabelle
