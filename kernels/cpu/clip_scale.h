#pragma once

#include <cmath>

namespace mirabelle::backend {

/// What gradients of this sum of squares (null: 0) are multiplied with.
inline double clip_scale(const double* grad_squares, double max_grad_norm) {
  const double norm = grad_squares ? std::sqrt(*grad_squares) : 0;
  return norm > max_grad_norm ? max_grad_norm / norm : 1;
}

}  // namespace mirabelle::backend
