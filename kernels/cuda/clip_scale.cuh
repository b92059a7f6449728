#pragma once

namespace mirabelle::backend {

/// What gradients of this sum of squares (null: 0) are multiplied with.
__device__ inline float clip_scale(const double* grad_squares, float max_grad_norm) {
  const float norm = grad_squares ? static_cast<float>(sqrt(*grad_squares)) : 0.0f;
  return norm > max_grad_norm ? max_grad_norm / norm : 1.0f;
}

/// Whether gradients of this sum of squares (null: any) are used at all.
__device__ inline bool is_good_norm(const double* grad_squares, double max_good_norm) {
  return !grad_squares || sqrt(*grad_squares) <= max_good_norm;  // false for NaN
}

}  // namespace mirabelle::backend
