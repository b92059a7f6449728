#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace mirabelle::backend {

/// exp(x) without branches or calls, so that a loop over it vectorises: std::exp of a float does
/// not. Off by at most 1.02 units in the last place (checked on every float); underflows to 0,
/// overflows to infinity, and NaN stays NaN. float64, which only gradient checks use, takes
/// std::exp. Always inlined: GCC stops inlining in a large file, and a loop with a call stays
/// scalar.
template <typename T>
[[gnu::always_inline]] inline T fast_exp(T x) {
  return std::exp(x);
}

// exp(x) = 2^n exp(r) with n the integer nearest to x / log(2), so that |r| <= log(2) / 2 and a
// polynomial of degree 6 suffices (minimax: relative error 3e-9).
template <>
[[gnu::always_inline]] inline float fast_exp(float x) {
  x = x < -104.0f ? -104.0f : x;  // here the result is already 0 ...
  x = x > 89.0f ? 89.0f : x;      // ... and here infinity, and n still fits the exponents below
  constexpr float kRound = 0x1.8p23f;  // a sum with it has no fraction: its last bits are n
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;  // log(2) in two parts: n * the
                                                                 // first is exact
  float p = 1.38144673e-3f;
  p = p * r + 8.36878042e-3f;
  p = p * r + 4.16683942e-2f;
  p = p * r + 1.66665201e-1f;
  p = p * r + 4.99999934e-1f;
  p = 1 + (r + r * r * p);
  // 2^n as a product of two powers, since n reaches beyond the exponents of normal numbers.
  const int32_t exponent =
      static_cast<int32_t>(std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(kRound));
  const int32_t half = exponent >> 1;
  const float scale1 = std::bit_cast<float>(static_cast<uint32_t>(half + 127) << 23);
  const float scale2 = std::bit_cast<float>(static_cast<uint32_t>(exponent - half + 127) << 23);
  return p * scale1 * scale2;
}

}  // namespace mirabelle::backend
