#pragma once

#include <cstdint>

#include "mirabelle/core/bfloat16.h"

namespace mirabelle::backend {

/// The term of an element in the sum of bit_hash.h.
MIRABELLE_HOST_DEVICE inline uint64_t mixed_bits(uint64_t bits, int64_t index) {
  uint64_t z = bits + (static_cast<uint64_t>(index) + 1) * 0x9E3779B97F4A7C15;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
  z = (z ^ z >> 27) * 0x94D049BB133111EB;
  return z ^ z >> 31;
}

}  // namespace mirabelle::backend
