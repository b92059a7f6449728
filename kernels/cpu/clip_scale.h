#pragma once

#include <cmath>

namespace mirabelle::backend {

/// What gradients of this sum of squares (null: 0) are multiplied with.
inline double clip_scale(const double* grad_squares, double max_grad_norm) {
  const double norm = grad_squares ? std::sqrt(*grad_squares) : 0;
  return norm > max_grad_norm ? max_grad_norm / norm : 1;
}

/// Whether gradients of this sum of squares (null: any) are used at all.
inline bool is_good_norm(const double* grad_squares, double max_good_norm) {
  return !grad_squares || std::sqrt(*grad_squares) <= max_good_norm;  // false for NaN
}

}  // namespace mirabelle::backend
