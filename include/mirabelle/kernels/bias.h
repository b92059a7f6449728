#pragma once

#include "mirabelle/core/stream.h"
#include "mirabelle/core/tensor.h"

namespace mirabelle {

/// x += bias in every row.
///
///   x     [num_rows, num_columns]
///   bias  [num_columns]
///
/// Enqueues on `stream` and returns. Throws Error if shapes, dtypes or devices disagree.
void add_bias(const TensorView& x, const TensorView& bias, const Stream& stream);

/// grad_bias [num_columns] += the sum over the rows of grad [num_rows, num_columns], in an order
/// that depends on num_rows only. grad_bias and workspace have the wide dtype.
///   workspace  [num_token_chunks(num_rows), num_columns], overwritten (see rms_norm.h)
void bias_backward(const TensorView& grad_bias, const TensorView& grad, const TensorView& workspace,
                   const Stream& stream);

namespace backend {
template <Device D, typename T>
void add_bias(T* x, const T* bias, int64_t num_rows, int64_t num_columns, const Stream& stream);
template <Device D, typename T>
void bias_backward(Wide<T>* grad_bias, const T* grad, int64_t num_rows, int64_t num_columns,
                   int64_t num_chunks, Wide<T>* workspace, const Stream& stream);
}  // namespace backend

}  // namespace mirabelle
