#include "cuda/block_reduce.cuh"
#include "cuda/vector_load.cuh"
#include "mirabelle/kernels/squared_error.h"

namespace mirabelle::backend {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

/// A warp takes a row.
__global__ void __launch_bounds__(kThreads)
    squared_error_kernel(float* loss, float* x, const float* target, int64_t num_rows,
                         int64_t num_columns, float factor) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (row >= num_rows) return;
  float sum = 0;
  for (int64_t column = threadIdx.x % kWarp; column < num_columns; column += kWarp) {
    const int64_t i = row * num_columns + column;
    const float difference = x[i] - target[i];
    x[i] = factor * difference;
    sum += difference * difference;
  }
  sum = warp_reduce(sum, Add());
  if (threadIdx.x % kWarp == 0) loss[row] = sum;
}

}  // namespace

template <>
void squared_error<Device::kCuda, float>(float* loss, float* x, const float* target,
                                         int64_t num_rows, int64_t num_columns, double grad_scale,
                                         const Stream& stream) {
  if (num_rows == 0) return;
  squared_error_kernel<<<ceil_div(num_rows, kWarps), kThreads, 0, stream.cuda()>>>(
      loss, x, target, num_rows, num_columns, static_cast<float>(2 * grad_scale));
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace mirabelle::backend
