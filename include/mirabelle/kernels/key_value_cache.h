#pragma once

#include "mirabelle/core/stream.h"
#include "mirabelle/core/tensor.h"

namespace mirabelle {

/// Copies the keys and values, which end each row of qkv.
///   kv   [num_tokens, 2, num_kv_heads, head_dim]: the keys, then the values
///   qkv  [num_tokens, num_heads + 2 * num_kv_heads, head_dim]  see rotary_embedding.h
void copy_keys_and_values(const TensorView& kv, const TensorView& qkv, const Stream& stream);

namespace backend {
template <Device D, typename T>
void copy_keys_and_values(T* kv, const T* qkv, int64_t num_tokens, int64_t kv_width,
                          int64_t qkv_width, const Stream& stream);
}  // namespace backend

}  // namespace mirabelle
