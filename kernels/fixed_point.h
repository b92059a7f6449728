#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "mirabelle/core/bfloat16.h"

namespace mirabelle::backend {

// Squares as integers, see add_fixed_point_squares in reduce.h.

/// Whether numbers of which `largest` is the largest have squares to add.
MIRABELLE_HOST_DEVICE inline bool has_squares(double largest) {
  return 0 < largest && largest < std::numeric_limits<double>::infinity();
}

/// `scale` is two to this power.
MIRABELLE_HOST_DEVICE inline int fixed_point_exponent(double largest) {
  int exponent;
  std::frexp(largest, &exponent);
  return exponent > -900 ? exponent : -900;  // below, squares are 0 in float64 anyway
}

/// Of which the square is the term of an element x: x * fixed_point_factor(largest).
MIRABELLE_HOST_DEVICE inline double fixed_point_factor(double largest) {
  return std::ldexp(1.0, 25 - fixed_point_exponent(largest));
}

/// What a sum of terms stands for: high * 2^32 + low, neither of them negative.
MIRABELLE_HOST_DEVICE inline double fixed_point_value(int64_t high, int64_t low, double largest) {
  if (!has_squares(largest)) return largest;
  // The first is below 2^53, so that only their sum is rounded, however they were shared out.
  const double total = std::ldexp(static_cast<double>(high + (low >> 32)), 32) +
                       static_cast<double>(low & 0xFFFFFFFF);
  return std::ldexp(total, 2 * (fixed_point_exponent(largest) - 25));
}

}  // namespace mirabelle::backend
