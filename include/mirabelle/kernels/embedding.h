#pragma once

#include "mirabelle/core/stream.h"
#include "mirabelle/core/tensor.h"
#include "mirabelle/kernels/dropout.h"

namespace mirabelle {

/// out [num_tokens, hidden_size] = dropout(table[tokens - first_token]), and +0 for tokens that are
/// not in the table, and in place of every -0: so where each of several ranks has a part of the
/// table, their outs can be added up.
///   tokens [num_tokens] int32, none negative
///   table  [num_rows, hidden_size]: the rows of tokens [first_token, first_token + num_rows)
/// Throws Error if shapes, dtypes or devices disagree or (where the host can read it) a token is
/// negative, as does the backward pass.
void embedding_forward(const TensorView& out, const TensorView& tokens, const TensorView& table,
                       int64_t first_token, const Dropout& dropout, const Stream& stream);

/// grad_table[tokens[i] - first_token] += dropout mask applied to grad_out[i] for the tokens that
/// are in the table, in an order that depends on the tokens only. grad_table has the wide dtype.
void embedding_backward(const TensorView& grad_table, const TensorView& grad_out,
                        const TensorView& tokens, int64_t first_token, const Dropout& dropout,
                        const Stream& stream);

/// Throws Error unless all `tokens`, int32, are in [0, vocab_size); looks only where the host can
/// read them.
void check_tokens(const TensorView& tokens, int64_t vocab_size);

/// out [n, row...] = x[indices]: rows of x [m, row...] by indices [n] int32, each in [0, m) or
/// (where the host can read it) Error.
void gather_rows(const TensorView& out, const TensorView& x, const TensorView& indices,
                 const Stream& stream);

namespace backend {
struct DropoutArguments;
template <Device D, typename T>
void embedding_forward(T* out, const int32_t* tokens, const T* table, int64_t num_tokens,
                       int64_t num_rows, int64_t hidden_size, int64_t first_token,
                       const DropoutArguments& dropout, const Stream& stream);
template <Device D, typename T>
void embedding_backward(Wide<T>* grad_table, const T* grad_out, const int32_t* tokens,
                        int64_t num_tokens, int64_t num_rows, int64_t hidden_size,
                        int64_t first_token, const DropoutArguments& dropout, const Stream& stream);
template <Device D, typename T>
void gather_rows(T* out, const T* x, const int32_t* indices, int64_t num_out_rows, int64_t num_rows,
                 int64_t row_size, const Stream& stream);
}  // namespace backend

}  // namespace mirabelle
