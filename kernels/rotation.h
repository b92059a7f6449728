#pragma once

#include <cmath>

#include "mirabelle/core/bfloat16.h"  // MIRABELLE_HOST_DEVICE

namespace mirabelle::backend {

/// The gradient of the rotation trick for one row, of its dot products with z, the quantized q and
/// the gradient g:  grad_z = of_g * g + of_z * z + of_q * q.
///
/// With the unit vectors a = z / |z| and b = q / |q|, the rotation from a to b is
///   R = I - (a + b)(a + b)^T / (1 + a b) + 2 b a^T
/// and grad_z = (|q| / |z|) R^T g.
template <typename T>
struct RotatedGradient {
  T of_g = 1, of_z = 0, of_q = 0;

  MIRABELLE_HOST_DEVICE RotatedGradient(T zz, T qq, T zq, T zg, T qg) {
    if (!(zz > 0 && qq > 0)) return;
    const T z_norm = std::sqrt(zz), q_norm = std::sqrt(qq);
    const T one_plus_cosine = 1 + zq / (z_norm * q_norm);
    if (!(one_plus_cosine > static_cast<T>(1e-6))) return;  // opposite: any rotation would do
    const T ratio = q_norm / z_norm, bg = qg / q_norm;
    const T along_sum = (zg / z_norm + bg) / one_plus_cosine;
    of_g = ratio;
    of_z = ratio * (2 * bg - along_sum) / z_norm;
    of_q = -ratio * along_sum / q_norm;
  }
};

}  // namespace mirabelle::backend
