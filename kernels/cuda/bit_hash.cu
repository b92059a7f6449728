#include <algorithm>

#include "cuda/block_reduce.cuh"
#include "cuda/vector_load.cuh"
#include "float_bits.h"
#include "mirabelle/kernels/bit_hash.h"
#include "mixed_bits.h"

namespace mirabelle::backend {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1024;

// Integers: the order of the atomic additions does not show.
template <typename Bits>
__global__ void __launch_bounds__(kThreads)
    bit_hash_kernel(unsigned long long* out, const Bits* x, int64_t n) {
  unsigned long long sum = 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n; i += stride) {
    sum += mixed_bits(x[i], i);
  }
  sum = block_reduce<kThreads>(sum, Add());
  if (threadIdx.x == 0) atomicAdd(out, sum);
}

}  // namespace

template <Device D, typename T>
void bit_hash(int64_t* out, const T* x, int64_t n, const Stream& stream) {
  CUDA_CHECK(cudaMemsetAsync(out, 0, sizeof(int64_t), stream.cuda()));
  if (n == 0) return;
  const int64_t blocks = std::min(ceil_div(n, kThreads), kMaxBlocks);
  bit_hash_kernel<<<blocks, kThreads, 0, stream.cuda()>>>(
      reinterpret_cast<unsigned long long*>(out),
      reinterpret_cast<const typename FloatBits<T>::type*>(x), n);
  CUDA_CHECK(cudaGetLastError());
}

#define INSTANTIATE(T) \
  template void bit_hash<Device::kCuda>(int64_t*, const T*, int64_t, const Stream&);
INSTANTIATE(float)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
