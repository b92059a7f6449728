#pragma once

#include "mirabelle/core/stream.h"
#include "mirabelle/core/tensor.h"

namespace mirabelle {

/// Squared error of each row, whose gradient replaces the prediction. float32, and float64 on the
/// CPU.
///   loss[i] = |x[i] - target[i]|^2
///   x       = grad_scale * 2 (x - target)
///
///   loss       [num_rows], overwritten
///   x, target  [num_rows, num_columns]
void squared_error(const TensorView& loss, const TensorView& x, const TensorView& target,
                   double grad_scale, const Stream& stream);

namespace backend {
template <Device D, typename T>
void squared_error(T* loss, T* x, const T* target, int64_t num_rows, int64_t num_columns,
                   double grad_scale, const Stream& stream);
}  // namespace backend

}  // namespace mirabelle
