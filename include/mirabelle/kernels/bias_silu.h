#pragma once

#include "mirabelle/core/stream.h"
#include "mirabelle/core/tensor.h"

namespace mirabelle {

/// The hidden layers of a multilayer perceptron, after their product. float32, and float64 on the
/// CPU.
///   out = silu(x + bias),   silu(x) = x / (1 + exp(-x))
///
///   out, x  [num_rows, num_columns]   may be the same tensor
///   bias    [num_columns]
void bias_silu_forward(const TensorView& out, const TensorView& x, const TensorView& bias,
                       const Stream& stream);

/// grad_x = grad_out * silu'(x + bias), overwritten; may be grad_out or x itself.
/// grad_bias += the sum of grad_x over the rows, in an order that depends on their number only.
void bias_silu_backward(const TensorView& grad_x, const TensorView& grad_bias,
                        const TensorView& grad_out, const TensorView& x, const TensorView& bias,
                        const Stream& stream);

namespace backend {
template <Device D, typename T>
void bias_silu_forward(T* out, const T* x, const T* bias, int64_t num_rows, int64_t num_columns,
                       const Stream& stream);
template <Device D, typename T>
void bias_silu_backward(T* grad_x, T* grad_bias, const T* grad_out, const T* x, const T* bias,
                        int64_t num_rows, int64_t num_columns, const Stream& stream);
}  // namespace backend

}  // namespace mirabelle
