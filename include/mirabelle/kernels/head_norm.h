#pragma once

#include "mirabelle/core/stream.h"
#include "mirabelle/core/tensor.h"

namespace mirabelle {

/// Root-mean-square normalisation of every query and every key head by itself, before rotation
/// (Henry et al. 2020, as Qwen3 has it); values are copied.
///
///   out = x * rstd * weight,  rstd = 1 / sqrt(mean(x^2) + epsilon)   over a head's features
///
///   out, x   [num_tokens, num_kv_heads, group_size + 2, head_dim]  per key/value head its
///            group_size query heads, then the key, then the value; may be the same tensor
///   weights  [2, head_dim]  of queries, of keys
///
/// Enqueues on `stream` and returns. Throws Error if shapes, dtypes or devices disagree.
void head_norm_forward(const TensorView& out, const TensorView& x, const TensorView& weights,
                       double epsilon, const Stream& stream);

/// Gradients of the above: grad_x overwritten, may be grad_out; grad_weights [2, head_dim] += the
/// sum over tokens and heads, in an order that depends on their numbers only. grad_weights and
/// workspace have the wide dtype.
///   workspace  [num_token_chunks(num_tokens), 2, head_dim], overwritten (see rms_norm.h)
void head_norm_backward(const TensorView& grad_x, const TensorView& grad_weights,
                        const TensorView& grad_out, const TensorView& x, const TensorView& weights,
                        double epsilon, const TensorView& workspace, const Stream& stream);

namespace backend {
template <Device D, typename T>
void head_norm_forward(T* out, const T* x, const T* weights, int64_t num_tokens,
                       int64_t num_kv_heads, int64_t group_size, int64_t head_dim, double epsilon,
                       const Stream& stream);
template <Device D, typename T>
void head_norm_backward(T* grad_x, Wide<T>* grad_weights, const T* grad_out, const T* x,
                        const T* weights, int64_t num_tokens, int64_t num_kv_heads,
                        int64_t group_size, int64_t head_dim, double epsilon, int64_t num_chunks,
                        Wide<T>* workspace, const Stream& stream);
}  // namespace backend

}  // namespace mirabelle
