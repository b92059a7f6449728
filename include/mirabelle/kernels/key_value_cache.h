#pragma once

#include "mirabelle/core/stream.h"
#include "mirabelle/core/tensor.h"

namespace mirabelle {

/// Copies keys and values out of a fused projection.
///   kv   [num_tokens, num_kv_heads, 2, head_dim]: per head the key, then the value
///   qkv  [num_tokens, num_kv_heads, group_size + 2, head_dim]  see rotary_embedding.h
void copy_keys_and_values(const TensorView& kv, const TensorView& qkv, const Stream& stream);

namespace backend {
template <Device D, typename T>
void copy_keys_and_values(T* kv, const T* qkv, int64_t num_tokens, int64_t num_kv_heads,
                          int64_t group_size, int64_t head_dim, const Stream& stream);
}  // namespace backend

}  // namespace mirabelle
