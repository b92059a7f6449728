#include "mirabelle/kernels/key_value_cache.h"

#include <algorithm>

namespace mirabelle::backend {

template <Device D, typename T>
void copy_keys_and_values(T* kv, const T* qkv, int64_t num_tokens, int64_t num_kv_heads,
                          int64_t group_size, int64_t head_dim, const Stream&) {
  const int64_t from = (group_size + 2) * head_dim, to = 2 * head_dim;
#pragma omp parallel for schedule(static)
  for (int64_t head = 0; head < num_tokens * num_kv_heads; ++head) {
    std::copy_n(qkv + head * from + group_size * head_dim, to, kv + head * to);
  }
}

#define INSTANTIATE(T)                                                                         \
  template void copy_keys_and_values<Device::kCpu, T>(T*, const T*, int64_t, int64_t, int64_t, \
                                                      int64_t, const Stream&);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace mirabelle::backend
