#pragma once

#include <cstdint>

#include "mirabelle/core/stream.h"

namespace mirabelle::backend {

/// Small numbers in ascending order and where each stood; equal ones in the order of their places.
/// So sums over equal indices have a fixed order and need no atomics. Lives in the stream's
/// workspace: valid until the next kernel that uses one.
struct SortedIndices {
  const int32_t* values;
  const int32_t* order;
};

/// Sorts indices[i] - first, for `indices` [n] of which the range [first, first + count) matters:
/// all others become `count`, and so the last.
SortedIndices sort_indices(const int32_t* indices, int64_t n, int64_t first, int64_t count,
                           const Stream& stream);

}  // namespace mirabelle::backend
