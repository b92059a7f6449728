#include "cuda/block_reduce.cuh"
#include "cuda/vector_load.cuh"
#include "level_of.h"
#include "mirabelle/kernels/token_levels.h"

namespace mirabelle::backend {
namespace {

constexpr int kThreads = 256;
constexpr int kSumThreads = 1024;

template <typename T>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(T* out, const int32_t* tokens, int64_t n, const int32_t* bounds,
                  int64_t num_levels, const double* weights) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  const int64_t level = level_of(tokens[i], bounds, num_levels);
  out[i] = static_cast<T>(level < 0 ? 1.0f : static_cast<float>(weights[level]));
}

// A block takes a level. It reads all tokens: they are few beside the logits that they came from.
template <typename T>
__global__ void __launch_bounds__(kSumThreads)
    level_sums_kernel(double* sums, const T* x, const int32_t* tokens, int64_t n,
                      const int32_t* bounds) {
  const int32_t begin = bounds[blockIdx.x], end = bounds[blockIdx.x + 1];
  double of_level = 0;
  for (int64_t i = threadIdx.x; i < n; i += kSumThreads) {
    if (begin <= tokens[i] && tokens[i] < end) of_level += static_cast<float>(x[i]);
  }
  of_level = block_reduce<kSumThreads>(of_level, Add());
  if (threadIdx.x == 0) sums[blockIdx.x] += of_level;
}

}  // namespace

template <Device D, typename T>
void gather_level_weights(T* out, const int32_t* tokens, int64_t n, const int32_t* bounds,
                          int64_t num_levels, const double* weights, const Stream& stream) {
  if (n == 0) return;
  gather_kernel<<<ceil_div(n, kThreads), kThreads, 0, stream.cuda()>>>(out, tokens, n, bounds,
                                                                       num_levels, weights);
  CUDA_CHECK(cudaGetLastError());
}

template <Device D, typename T>
void add_level_sums(double* sums, const T* x, const int32_t* tokens, int64_t n,
                    const int32_t* bounds, int64_t num_levels, const Stream& stream) {
  level_sums_kernel<<<num_levels, kSumThreads, 0, stream.cuda()>>>(sums, x, tokens, n, bounds);
  CUDA_CHECK(cudaGetLastError());
}

#define INSTANTIATE(T)                                                                       \
  template void gather_level_weights<Device::kCuda, T>(                                      \
      T*, const int32_t*, int64_t, const int32_t*, int64_t, const double*, const Stream&);   \
  template void add_level_sums<Device::kCuda, T>(double*, const T*, const int32_t*, int64_t, \
                                                 const int32_t*, int64_t, const Stream&);
INSTANTIATE(float)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
