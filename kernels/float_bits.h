#pragma once

#include <cstdint>

#include "mirabelle/core/bfloat16.h"

namespace mirabelle::backend {

/// The unsigned integer that holds the bits of a floating-point number.
template <typename T>
struct FloatBits;
template <>
struct FloatBits<BFloat16> {
  using type = uint16_t;
};
template <>
struct FloatBits<float> {
  using type = uint32_t;
};
template <>
struct FloatBits<double> {
  using type = uint64_t;
};

}  // namespace mirabelle::backend
