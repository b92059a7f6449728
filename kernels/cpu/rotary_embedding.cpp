#include "mirabelle/kernels/rotary_embedding.h"

#include <cmath>

#include "cpu/check_indices.h"
#include "cpu/parallel_threshold.h"

namespace mirabelle::backend {

template <Device D, typename T>
void fill_rotary_table(T* table, int64_t max_seq_len, int64_t head_dim, double theta,
                       const Stream&) {
  const int64_t half = head_dim / 2;
#pragma omp parallel for schedule(static) if (max_seq_len * half > 1024)
  for (int64_t position = 0; position < max_seq_len; ++position) {
    for (int64_t i = 0; i < half; ++i) {
      const double angle = position * std::pow(theta, -2.0 * i / head_dim);
      table[(position * half + i) * 2] = static_cast<T>(std::cos(angle));
      table[(position * half + i) * 2 + 1] = static_cast<T>(std::sin(angle));
    }
  }
}

template <Device D, typename T>
void rotate_queries_and_keys(T* qkv, const int32_t* positions, const Wide<T>* table,
                             int64_t num_tokens, int64_t max_seq_len, int64_t num_kv_heads,
                             int64_t group_size, int64_t head_dim, bool backward, const Stream&) {
  check_index_range("positions", positions, num_tokens, 0, max_seq_len);
  const int64_t half = head_dim / 2;
  const int64_t heads_per_group = group_size + 2;
  const T direction = backward ? T{-1} : T{1};
#pragma omp parallel for schedule( \
    static) if (num_tokens * num_kv_heads * heads_per_group * head_dim > kParallelThreshold)
  for (int64_t token = 0; token < num_tokens; ++token) {
    const T* cos_sin = table + positions[token] * head_dim;
    for (int64_t head = 0; head < num_kv_heads * heads_per_group; ++head) {
      if (head % heads_per_group == group_size + 1) continue;  // the value
      T* first = qkv + (token * num_kv_heads * heads_per_group + head) * head_dim;
      T* second = first + half;
#pragma omp simd
      for (int64_t i = 0; i < half; ++i) {
        const T cosine = cos_sin[2 * i], sine = direction * cos_sin[2 * i + 1];
        const T x = first[i], y = second[i];
        first[i] = x * cosine - y * sine;
        second[i] = x * sine + y * cosine;
      }
    }
  }
}

#define INSTANTIATE(T)                                                                             \
  template void fill_rotary_table<Device::kCpu, T>(T*, int64_t, int64_t, double, const Stream&);   \
  template void rotate_queries_and_keys<Device::kCpu, T>(T*, const int32_t*, const T*, int64_t,    \
                                                         int64_t, int64_t, int64_t, int64_t, bool, \
                                                         const Stream&);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace mirabelle::backend
