#pragma once

#include <cstdint>
#include <functional>

namespace mirabelle {

/// A matrix [num_items, dim] that is read in pieces, because it may not fit into memory.
struct ItemRows {
  int64_t num_items = 0, dim = 0;
  /// Rows [begin, end) into `out`. Any rank may read any rows.
  std::function<void(int64_t begin, int64_t end, float* out)> read;
};

/// The same rows, served out of memory. All of them are kept from the first read on if they take at
/// most `kept_bytes` or are no more than `window_items`. Otherwise reading in order moves a window
/// of `window_items` rows along, and pieces that are read here and there pass it by. For one
/// thread; copies share the memory.
ItemRows buffered_rows(ItemRows rows, int64_t window_items, int64_t kept_bytes = 0);

}  // namespace mirabelle
