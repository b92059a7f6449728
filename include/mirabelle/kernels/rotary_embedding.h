#pragma once

#include <span>
#include <vector>

#include "mirabelle/core/stream.h"
#include "mirabelle/core/tensor.h"

namespace mirabelle {

/// Rotary position embedding (Su et al. 2021), half-split as in Hugging Face's models: feature i of
/// the first half of a head is rotated together with feature i of the second half.

/// theta^(-2 i / head_dim) for i = 0 .. head_dim / 2 - 1: angles per position.
std::vector<double> rotary_frequencies(int64_t head_dim, double theta);

/// table [max_seq_len, head_dim / 2, 2] = amplitude * cos, sin of position * frequencies[i],
/// float32 or float64. Computed in float64 by the host; waits for the stream.
void fill_rotary_table(const TensorView& table, std::span<const double> frequencies,
                       double amplitude, const Stream& stream);

/// Brings the fused projection's heads into the order that attention wants, queries and keys
/// rotated by the angles of their positions.
///   qkv        [num_tokens, num_heads + 2 * num_kv_heads, head_dim]: all query heads, all key
///              heads, all value heads; query head h belongs to key/value head h / group_size
///   projected  [num_tokens, num_kv_heads, group_size + 2, head_dim]: per key/value head its
///              group_size query heads, then the key, then the value, so that a tensor-parallel
///              rank's share of the weight is contiguous
///   positions  [num_tokens] int32, each below max_seq_len
///   table      as above, of qkv's wide dtype
/// The two must not overlap. Throws Error if shapes, dtypes or devices disagree, head_dim is odd or
/// (where the host can read it) a position is out of range.
void split_and_rotate(const TensorView& qkv, const TensorView& projected,
                      const TensorView& positions, const TensorView& table, const Stream& stream);

/// grad_projected [like projected], overwritten, from grad_qkv [like qkv]: rotates back.
void split_and_rotate_backward(const TensorView& grad_projected, const TensorView& grad_qkv,
                               const TensorView& positions, const TensorView& table,
                               const Stream& stream);

namespace backend {
template <Device D, typename T>
void split_and_rotate(T* qkv, const T* projected, const int32_t* positions, const Wide<T>* table,
                      int64_t num_tokens, int64_t max_seq_len, int64_t num_kv_heads,
                      int64_t group_size, int64_t head_dim, const Stream& stream);
template <Device D, typename T>
void split_and_rotate_backward(T* grad_projected, const T* grad_qkv, const int32_t* positions,
                               const Wide<T>* table, int64_t num_tokens, int64_t max_seq_len,
                               int64_t num_kv_heads, int64_t group_size, int64_t head_dim,
                               const Stream& stream);
}  // namespace backend

}  // namespace mirabelle
