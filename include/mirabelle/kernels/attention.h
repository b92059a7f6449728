#pragma once

#include "mirabelle/core/stream.h"
#include "mirabelle/core/tensor.h"

namespace mirabelle {

/// The widest head that the attention kernels have tiles for.
inline constexpr int64_t kMaxHeadDim = 256;

/// Causal softmax attention over packed sequences with grouped-query heads, computed in blocks with
/// a running softmax (Dao et al. 2022): no T x T matrix is ever stored.
///
///   out = softmax(scale * q k^T + causal mask within the sequence) v
///
///   out      [num_tokens, num_heads * head_dim]
///   log_sum  [num_tokens, num_heads] wide dtype   log of the sum of exp of the scaled scores, kept
///                                                 for the backward pass
///   qkv      [num_tokens, num_heads + 2 * num_kv_heads, head_dim]  queries, keys, values (see
///            rotary_embedding.h); num_heads is a multiple of num_kv_heads, and follows from `out`
///   sequence_offsets  [num_sequences + 1] int32, from 0 to num_tokens, ascending; sequences may be
///                     empty
///   max_sequence_tokens  no sequence is longer; better the same for all batches than close, as
///   some
///                     implementations make a plan for it. Checked on the CPU only: on a GPU a
///                     longer sequence is undefined behaviour
///
/// head_dim is at most kMaxHeadDim. Throws Error if shapes, dtypes or devices disagree.
void attention_forward(const TensorView& out, const TensorView& log_sum, const TensorView& qkv,
                       const TensorView& sequence_offsets, int64_t max_sequence_tokens,
                       double scale, const Stream& stream);

/// grad_qkv [like qkv], overwritten, from grad_out [like out] and the forward pass's results. On a
/// reproducible stream the order of every sum is fixed by the sequences alone.
void attention_backward(const TensorView& grad_qkv, const TensorView& grad_out,
                        const TensorView& out, const TensorView& log_sum, const TensorView& qkv,
                        const TensorView& sequence_offsets, int64_t max_sequence_tokens,
                        double scale, const Stream& stream);

/// One decoding step of beam search: the beams of a user share the keys and values of the user's
/// history, and each has those of its own few later tokens.
///
///   out             [num_beams, num_heads * head_dim]
///   qkv             [num_beams, num_heads + 2 * num_kv_heads, head_dim]  of the newest tokens
///   prefix_qkv      [num_prefix_tokens, num_heads + 2 * num_kv_heads, head_dim]  of the histories
///   prefix_offsets  [num_users + 1] int32: the tokens of a user's history
///   beam_offsets    [num_users + 1] int32: the rows of `qkv` that are a user's beams
///   suffix_kv       [suffix_length, num_beams, 2, num_kv_heads, head_dim]  keys, then values, of
///                   each beam's earlier tokens, oldest first; absent if suffix_length is 0
///
/// A query sees its user's history, its beam's suffix, and itself. The order of every sum is fixed
/// by the shapes and offsets.
void beam_attention(const TensorView& out, const TensorView& qkv, const TensorView& prefix_qkv,
                    const TensorView& prefix_offsets, const TensorView& beam_offsets,
                    const TensorView& suffix_kv, int64_t suffix_length, double scale,
                    const Stream& stream);

namespace backend {
template <Device D, typename T>
void attention_forward(T* out, Wide<T>* log_sum, const T* qkv, const int32_t* sequence_offsets,
                       int64_t num_tokens, int64_t num_sequences, int64_t max_sequence_tokens,
                       int64_t num_kv_heads, int64_t group_size, int64_t head_dim, double scale,
                       const Stream& stream);
template <Device D, typename T>
void attention_backward(T* grad_qkv, const T* grad_out, const T* out, const Wide<T>* log_sum,
                        const T* qkv, const int32_t* sequence_offsets, int64_t num_tokens,
                        int64_t num_sequences, int64_t max_sequence_tokens, int64_t num_kv_heads,
                        int64_t group_size, int64_t head_dim, double scale, const Stream& stream);
template <Device D, typename T>
void beam_attention(T* out, const T* qkv, const T* prefix_qkv, const int32_t* prefix_offsets,
                    const int32_t* beam_offsets, const T* suffix_kv, int64_t num_users,
                    int64_t num_prefix_tokens, int64_t num_beams, int64_t suffix_length,
                    int64_t num_kv_heads, int64_t group_size, int64_t head_dim, double scale,
                    const Stream& stream);
}  // namespace backend

}  // namespace mirabelle
