#include "mirabelle/kernels/key_value_cache.h"

#include "mirabelle/core/bfloat16.h"
#include "mirabelle/core/cuda_check.h"

namespace mirabelle::backend {

template <Device D, typename T>
void copy_keys_and_values(T* kv, const T* qkv, int64_t num_tokens, int64_t kv_width,
                          int64_t qkv_width, const Stream& stream) {
  if (num_tokens == 0) return;
  CUDA_CHECK(cudaMemcpy2DAsync(kv, kv_width * sizeof(T), qkv + qkv_width - kv_width,
                               qkv_width * sizeof(T), kv_width * sizeof(T), num_tokens,
                               cudaMemcpyDeviceToDevice, stream.cuda()));
}

#define INSTANTIATE(T)                                                                          \
  template void copy_keys_and_values<Device::kCuda, T>(T*, const T*, int64_t, int64_t, int64_t, \
                                                       const Stream&);
INSTANTIATE(float)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
