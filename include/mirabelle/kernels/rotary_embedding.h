#pragma once

#include "mirabelle/core/stream.h"
#include "mirabelle/core/tensor.h"

namespace mirabelle {

/// Rotary position embedding (Su et al. 2021), half-split as in Hugging Face's models: feature i of
/// the first half of a head is rotated together with feature i of the second half.

/// table [max_seq_len, head_dim / 2, 2] = cos, sin of position * theta^(-2 i / head_dim). Computed
/// in float64.
void fill_rotary_table(const TensorView& table, double theta, const Stream& stream);

enum class Rotation { kForward, kBackward };  ///< by +angle; by -angle (the gradient)

/// Rotates queries and keys of a fused projection in place; values stay.
///   qkv        [num_tokens, num_kv_heads, group_size + 2, head_dim]: per key/value head its
///              group_size query heads, then the key, then the value
///   positions  [num_tokens] int32, each below max_seq_len
///   table      as above, of qkv's wide dtype
/// Throws Error if shapes, dtypes or devices disagree, head_dim is odd or (where the host can read
/// it) a position is out of range.
void rotate_queries_and_keys(const TensorView& qkv, const TensorView& positions,
                             const TensorView& table, Rotation rotation, const Stream& stream);

namespace backend {
template <Device D, typename T>
void rotate_queries_and_keys(T* qkv, const int32_t* positions, const Wide<T>* table,
                             int64_t num_tokens, int64_t max_seq_len, int64_t num_kv_heads,
                             int64_t group_size, int64_t head_dim, bool backward,
                             const Stream& stream);
template <Device D, typename T>
void fill_rotary_table(T* table, int64_t max_seq_len, int64_t head_dim, double theta,
                       const Stream& stream);
}  // namespace backend

}  // namespace mirabelle
