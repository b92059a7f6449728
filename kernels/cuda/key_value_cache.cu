#include "cuda/vector_load.cuh"
#include "mirabelle/kernels/key_value_cache.h"

namespace mirabelle::backend {
namespace {

constexpr int kThreads = 256;

/// A thread copies eight features of a key or value.
template <bool kAligned, typename T>
__global__ void __launch_bounds__(kThreads)
    copy_kernel(T* kv, const T* qkv, int64_t num_vectors, int vectors_per_pair, int group_size,
                int head_dim) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= num_vectors) return;
  const int64_t head = index / vectors_per_pair;  // of a token
  const int first = static_cast<int>(index % vectors_per_pair) * kVector;
  const T* pair = qkv + (head * (group_size + 2) + group_size) * head_dim;
  store_vector<kAligned>(kv + head * 2 * head_dim, first, 2 * head_dim,
                         load_vector<kAligned>(pair, first, 2 * head_dim));
}

}  // namespace

template <Device D, typename T>
void copy_keys_and_values(T* kv, const T* qkv, int64_t num_tokens, int64_t num_kv_heads,
                          int64_t group_size, int64_t head_dim, const Stream& stream) {
  const int64_t vectors_per_pair = ceil_div(2 * head_dim, kVector);
  const int64_t num_vectors = num_tokens * num_kv_heads * vectors_per_pair;
  if (num_vectors == 0) return;
  dispatch_flag(rows_are_aligned(head_dim, {kv, qkv}), [&]<bool kAligned>() {
    copy_kernel<kAligned><<<ceil_div(num_vectors, kThreads), kThreads, 0, stream.cuda()>>>(
        kv, qkv, num_vectors, static_cast<int>(vectors_per_pair), static_cast<int>(group_size),
        static_cast<int>(head_dim));
    CUDA_CHECK(cudaGetLastError());
  });
}

#define INSTANTIATE(T)                                                                          \
  template void copy_keys_and_values<Device::kCuda, T>(T*, const T*, int64_t, int64_t, int64_t, \
                                                       int64_t, const Stream&);
INSTANTIATE(float)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
