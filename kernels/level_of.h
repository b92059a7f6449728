#pragma once

#include <cstdint>

#include "mirabelle/core/bfloat16.h"

namespace mirabelle::backend {

/// The level of a token (token_levels.h), or -1. There are only a few levels.
MIRABELLE_HOST_DEVICE inline int64_t level_of(int32_t token, const int32_t* bounds,
                                              int64_t num_levels) {
  for (int64_t level = 0; level < num_levels; ++level) {
    if (bounds[level] <= token && token < bounds[level + 1]) return level;
  }
  return -1;
}

}  // namespace mirabelle::backend
