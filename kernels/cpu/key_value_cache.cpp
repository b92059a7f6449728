#include "mirabelle/kernels/key_value_cache.h"

#include <algorithm>

namespace mirabelle::backend {

template <Device D, typename T>
void copy_keys_and_values(T* kv, const T* qkv, int64_t num_tokens, int64_t kv_width,
                          int64_t qkv_width, const Stream&) {
#pragma omp parallel for schedule(static)
  for (int64_t token = 0; token < num_tokens; ++token) {
    std::copy_n(qkv + (token + 1) * qkv_width - kv_width, kv_width, kv + token * kv_width);
  }
}

#define INSTANTIATE(T)                                                                         \
  template void copy_keys_and_values<Device::kCpu, T>(T*, const T*, int64_t, int64_t, int64_t, \
                                                      const Stream&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
