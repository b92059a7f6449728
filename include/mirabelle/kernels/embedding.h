#pragma once

#include "mirabelle/core/stream.h"
#include "mirabelle/core/tensor.h"
#include "mirabelle/kernels/dropout.h"

namespace mirabelle {

/// out [num_tokens, hidden_size] = dropout(table[tokens]).
///   tokens [num_tokens] int32, each a row of table [vocab_size, hidden_size]
/// Throws Error if shapes, dtypes or devices disagree or (where the host can read it) a token is
/// out of range, as do the others.
void embedding_forward(const TensorView& out, const TensorView& tokens, const TensorView& table,
                       const Dropout& dropout, const Stream& stream);

/// grad_table[tokens[i]] += dropout mask applied to grad_out[i], in an order that depends on the
/// tokens only. grad_table has the wide dtype.
void embedding_backward(const TensorView& grad_table, const TensorView& grad_out,
                        const TensorView& tokens, const Dropout& dropout, const Stream& stream);

/// out [n, row...] = x[indices]: rows of x [m, row...] by indices [n] int32.
void gather_rows(const TensorView& out, const TensorView& x, const TensorView& indices,
                 const Stream& stream);

namespace backend {
struct DropoutArguments;
template <Device D, typename T>
void embedding_forward(T* out, const int32_t* tokens, const T* table, int64_t num_tokens,
                       int64_t vocab_size, int64_t hidden_size, const DropoutArguments& dropout,
                       const Stream& stream);
template <Device D, typename T>
void embedding_backward(Wide<T>* grad_table, const T* grad_out, const int32_t* tokens,
                        int64_t num_tokens, int64_t vocab_size, int64_t hidden_size,
                        const DropoutArguments& dropout, const Stream& stream);
template <Device D, typename T>
void gather_rows(T* out, const T* x, const int32_t* indices, int64_t num_out_rows, int64_t num_rows,
                 int64_t row_size, const Stream& stream);
}  // namespace backend

}  // namespace mirabelle
