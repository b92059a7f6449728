#include "mirabelle/kernels/rotary_embedding.h"

#include <algorithm>

#include "cpu/check_indices.h"
#include "cpu/parallel_threshold.h"
#include "projected_head.h"

namespace mirabelle::backend {
namespace {

/// Calls body(token, split, fused, is_value) for every head of every token, with the head's offset
/// in attention's layout and in the projection's.
template <typename Body>
void for_each_head(int64_t num_tokens, int64_t num_kv_heads, int64_t group_size, int64_t head_dim,
                   const Body& body) {
  const int64_t num_heads = num_kv_heads * (group_size + 2);
  const int64_t first_value = num_heads - num_kv_heads;
#pragma omp parallel for schedule(static) if (num_tokens * num_heads * head_dim > \
                                              kParallelThreshold)
  for (int64_t token = 0; token < num_tokens; ++token) {
    for (int64_t head = 0; head < num_heads; ++head) {
      const int64_t fused = projected_head(static_cast<int>(head), static_cast<int>(num_kv_heads),
                                           static_cast<int>(group_size));
      body(token, (token * num_heads + head) * head_dim, (token * num_heads + fused) * head_dim,
           head >= first_value);
    }
  }
}

/// direction 1 rotates by the angles, -1 back.
template <typename T>
void move_head(T* to, const T* from, const Wide<T>* cos_sin, bool is_value, Wide<T> direction,
               int64_t head_dim) {
  if (is_value) {
    std::copy_n(from, head_dim, to);
    return;
  }
  const int64_t half = head_dim / 2;
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    const Wide<T> cosine = cos_sin[2 * i], sine = direction * cos_sin[2 * i + 1];
    const Wide<T> x = from[i], y = from[half + i];
    to[i] = static_cast<T>(x * cosine - y * sine);
    to[half + i] = static_cast<T>(x * sine + y * cosine);
  }
}

}  // namespace

template <Device D, typename T>
void split_and_rotate(T* qkv, const T* projected, const int32_t* positions, const Wide<T>* table,
                      int64_t num_tokens, int64_t max_seq_len, int64_t num_kv_heads,
                      int64_t group_size, int64_t head_dim, const Stream&) {
  check_index_range("positions", positions, num_tokens, 0, max_seq_len);
  for_each_head(num_tokens, num_kv_heads, group_size, head_dim,
                [&](int64_t token, int64_t split, int64_t fused, bool is_value) {
                  move_head(qkv + split, projected + fused, table + positions[token] * head_dim,
                            is_value, 1, head_dim);
                });
}

template <Device D, typename T>
void split_and_rotate_backward(T* grad_projected, const T* grad_qkv, const int32_t* positions,
                               const Wide<T>* table, int64_t num_tokens, int64_t max_seq_len,
                               int64_t num_kv_heads, int64_t group_size, int64_t head_dim,
                               const Stream&) {
  check_index_range("positions", positions, num_tokens, 0, max_seq_len);
  for_each_head(num_tokens, num_kv_heads, group_size, head_dim,
                [&](int64_t token, int64_t split, int64_t fused, bool is_value) {
                  move_head(grad_projected + fused, grad_qkv + split,
                            table + positions[token] * head_dim, is_value, -1, head_dim);
                });
}

#define INSTANTIATE(T)                                                                           \
  template void split_and_rotate<Device::kCpu, T>(T*, const T*, const int32_t*, const Wide<T>*,  \
                                                  int64_t, int64_t, int64_t, int64_t, int64_t,   \
                                                  const Stream&);                                \
  template void split_and_rotate_backward<Device::kCpu, T>(                                      \
      T*, const T*, const int32_t*, const Wide<T>*, int64_t, int64_t, int64_t, int64_t, int64_t, \
      const Stream&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
