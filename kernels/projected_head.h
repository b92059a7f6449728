#pragma once

namespace mirabelle::backend {

/// Which head of a token in the projection's layout is number `head` in that of attention
/// (rotary_embedding.h).
constexpr int projected_head(int head, int num_kv_heads, int group_size) {
  const int key_or_value = head - num_kv_heads * group_size;
  if (key_or_value < 0) return head / group_size * (group_size + 2) + head % group_size;
  return key_or_value % num_kv_heads * (group_size + 2) + group_size + key_or_value / num_kv_heads;
}

}  // namespace mirabelle::backend
