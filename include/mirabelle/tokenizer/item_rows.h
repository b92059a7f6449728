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

}  // namespace mirabelle
