#pragma once

#include <bit>
#include <cstdint>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#define MIRABELLE_HOST_DEVICE __host__ __device__
#else
#define MIRABELLE_HOST_DEVICE
#endif

namespace mirabelle {

/// The upper half of a float32: its exponent and 7 bits of its mantissa. Only stored: it converts
/// to float32, in which all arithmetic is done.
struct BFloat16 {
  uint16_t bits;

  BFloat16() = default;

  /// Rounds to the nearest, ties to even; a NaN stays one.
  MIRABELLE_HOST_DEVICE explicit BFloat16(float value) {
#ifdef __CUDA_ARCH__
    bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
#else
    const uint32_t word = std::bit_cast<uint32_t>(value);
    const bool is_nan = (word & 0x7FFFFFFF) > 0x7F800000;
    const uint32_t rounded = word + 0x7FFF + (word >> 16 & 1);
    bits = static_cast<uint16_t>((is_nan ? word | 0x400000 : rounded) >> 16);
#endif
  }

  MIRABELLE_HOST_DEVICE operator float() const {
#ifdef __CUDA_ARCH__
    return __uint_as_float(static_cast<uint32_t>(bits) << 16);
#else
    return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
#endif
  }
};
static_assert(sizeof(BFloat16) == 2);

}  // namespace mirabelle
