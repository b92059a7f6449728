#pragma once

#include <cstdint>

#include "mirabelle/core/error.h"

namespace mirabelle::backend {

/// Throws unless lowest <= indices[i] < end for all i. One pass over int32 is nothing beside the
/// rows that they address, and an index out of range would overwrite foreign memory.
inline void check_index_range(const char* name, const int32_t* indices, int64_t n, int64_t lowest,
                              int64_t end) {
  int64_t num_bad = 0;
#pragma omp simd reduction(+ : num_bad)
  for (int64_t i = 0; i < n; ++i) num_bad += indices[i] < lowest || indices[i] >= end;
  if (num_bad == 0) return;
  for (int64_t i = 0; i < n; ++i) {
    MIRABELLE_CHECK(indices[i] >= lowest && indices[i] < end, name, "[", i, "] is ", indices[i],
                    ", wanted ", lowest, " .. ", end - 1);
  }
}

}  // namespace mirabelle::backend
