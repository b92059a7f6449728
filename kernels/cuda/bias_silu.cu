#include "cuda/block_reduce.cuh"
#include "cuda/vector_load.cuh"
#include "mirabelle/kernels/bias_silu.h"

namespace mirabelle::backend {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

__device__ float sigmoid(float x) { return 1 / (1 + __expf(-x)); }

template <bool kAligned>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(float* out, const float* x, const float* bias, int64_t num_rows,
                   int64_t num_columns, int64_t vectors_per_row) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t row = index / vectors_per_row, first = index % vectors_per_row * kVector;
  if (row >= num_rows) return;
  Vector values = load_vector<kAligned>(x + row * num_columns, first, num_columns);
  const Vector shift = load_vector<kAligned>(bias, first, num_columns);
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    const float sum = values.value[i] + shift.value[i];
    values.value[i] = sum * sigmoid(sum);
  }
  store_vector<kAligned>(out + row * num_columns, first, num_columns, values);
}

/// A block takes 32 columns, a warp of it every kWarps-th row; the warps' sums are added in their
/// order.
__global__ void __launch_bounds__(kThreads)
    backward_kernel(float* grad_x, float* grad_bias, const float* grad_out, const float* x,
                    const float* bias, int64_t num_rows, int64_t num_columns) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
  float total = 0;
  if (column < num_columns) {
    const float shift = bias[column];
    for (int64_t row = warp; row < num_rows; row += kWarps) {
      const int64_t i = row * num_columns + column;
      const float sum = x[i] + shift, s = sigmoid(sum);
      const float grad = grad_out[i] * (s + sum * s * (1 - s));
      grad_x[i] = grad;
      total += grad;
    }
  }
  __shared__ float of_warp[kWarps][kWarp];
  of_warp[warp][lane] = total;
  __syncthreads();
  if (warp > 0 || column >= num_columns) return;
  for (int w = 1; w < kWarps; ++w) total += of_warp[w][lane];
  grad_bias[column] += total;
}

}  // namespace

template <>
void bias_silu_forward<Device::kCuda, float>(float* out, const float* x, const float* bias,
                                             int64_t num_rows, int64_t num_columns,
                                             const Stream& stream) {
  const int64_t vectors = ceil_div(num_columns, kVector);
  if (num_rows * vectors == 0) return;
  dispatch_flag(rows_are_aligned(num_columns, {out, x, bias}), [&]<bool kAligned>() {
    forward_kernel<kAligned>
        <<<ceil_div(num_rows * vectors, kThreads), kThreads, 0, stream.cuda()>>>(
            out, x, bias, num_rows, num_columns, vectors);
    CUDA_CHECK(cudaGetLastError());
  });
}

template <>
void bias_silu_backward<Device::kCuda, float>(float* grad_x, float* grad_bias,
                                              const float* grad_out, const float* x,
                                              const float* bias, int64_t num_rows,
                                              int64_t num_columns, const Stream& stream) {
  if (num_rows * num_columns == 0) return;
  backward_kernel<<<ceil_div(num_columns, kWarp), kThreads, 0, stream.cuda()>>>(
      grad_x, grad_bias, grad_out, x, bias, num_rows, num_columns);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace mirabelle::backend
