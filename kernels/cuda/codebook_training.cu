#include "cuda/block_reduce.cuh"
#include "cuda/vector_load.cuh"
#include "mirabelle/kernels/codebook_training.h"
#include "rotation.h"

namespace mirabelle::backend {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;  // of a block

/// A warp takes a row.
__device__ int64_t row_of_warp() {
  return static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
}

__global__ void __launch_bounds__(kThreads)
    sum_kept_kernel(float* out, const float* residuals, const int32_t* num_kept,
                    int64_t num_elements, int64_t codebook_dim) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= num_elements) return;
  const int64_t level = num_kept[index / codebook_dim];
  out[index] = residuals[index] - residuals[level * num_elements + index];
}

__global__ void __launch_bounds__(kThreads)
    rotation_kernel(float* grad_z, const float* grad_quantized, const float* z,
                    const float* quantized, int64_t n, int64_t codebook_dim) {
  const int64_t row = row_of_warp();
  if (row >= n) return;
  const int64_t begin = row * codebook_dim, end = begin + codebook_dim;
  const int64_t first = begin + threadIdx.x % kWarp;
  float zz = 0, qq = 0, zq = 0, zg = 0, qg = 0;
  for (int64_t i = first; i < end; i += kWarp) {
    zz += z[i] * z[i];
    qq += quantized[i] * quantized[i];
    zq += z[i] * quantized[i];
    zg += z[i] * grad_quantized[i];
    qg += quantized[i] * grad_quantized[i];
  }
  zz = warp_reduce(zz, Add());
  qq = warp_reduce(qq, Add());
  zq = warp_reduce(zq, Add());
  zg = warp_reduce(zg, Add());
  qg = warp_reduce(qg, Add());
  const RotatedGradient<float> rotated(zz, qq, zq, zg, qg);
  for (int64_t i = first; i < end; i += kWarp) {
    grad_z[i] =
        rotated.of_g * grad_quantized[i] + rotated.of_z * z[i] + rotated.of_q * quantized[i];
  }
}

// Integers: the order of the atomic additions does not show.
__global__ void __launch_bounds__(kThreads)
    count_kernel(unsigned long long* counts, const int32_t* codes, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) atomicAdd(counts + codes[i], 1ULL);
}

__global__ void __launch_bounds__(kThreads)
    ema_kernel(float* codebook, float* ema_counts, const float* grad, const int64_t* counts,
               int64_t codebook_size, int64_t codebook_dim, float decay, float moved) {
  const int64_t code = row_of_warp();
  if (code >= codebook_size) return;
  const float count = decay * ema_counts[code] + moved * static_cast<float>(counts[code]);
  __syncwarp();  // all lanes have read it
  if (threadIdx.x % kWarp == 0) ema_counts[code] = count;
  if (counts[code] == 0) return;
  const float step = moved / count;
  const int64_t begin = code * codebook_dim, end = begin + codebook_dim;
  for (int64_t i = begin + threadIdx.x % kWarp; i < end; i += kWarp) codebook[i] -= step * grad[i];
}

}  // namespace

template <>
void sum_kept_codes<Device::kCuda, float>(float* out, const float* residuals,
                                          const int32_t* num_kept, int64_t /*num_levels*/,
                                          int64_t n, int64_t codebook_dim, const Stream& stream) {
  if (n * codebook_dim == 0) return;
  sum_kept_kernel<<<ceil_div(n * codebook_dim, kThreads), kThreads, 0, stream.cuda()>>>(
      out, residuals, num_kept, n * codebook_dim, codebook_dim);
  CUDA_CHECK(cudaGetLastError());
}

template <>
void rotation_backward<Device::kCuda, float>(float* grad_z, const float* grad_quantized,
                                             const float* z, const float* quantized, int64_t n,
                                             int64_t codebook_dim, const Stream& stream) {
  if (n == 0) return;
  rotation_kernel<<<ceil_div(n, kWarps), kThreads, 0, stream.cuda()>>>(grad_z, grad_quantized, z,
                                                                       quantized, n, codebook_dim);
  CUDA_CHECK(cudaGetLastError());
}

template <>
void count_codes<Device::kCuda>(int64_t* counts, const int32_t* codes, int64_t n,
                                int64_t /*codebook_size*/, const Stream& stream) {
  if (n == 0) return;
  count_kernel<<<ceil_div(n, kThreads), kThreads, 0, stream.cuda()>>>(
      reinterpret_cast<unsigned long long*>(counts), codes, n);
  CUDA_CHECK(cudaGetLastError());
}

template <>
void ema_codebook_update<Device::kCuda, float>(float* codebook, float* ema_counts,
                                               const float* grad, const int64_t* counts,
                                               int64_t codebook_size, int64_t codebook_dim,
                                               double decay, const Stream& stream) {
  if (codebook_size == 0) return;
  ema_kernel<<<ceil_div(codebook_size, kWarps), kThreads, 0, stream.cuda()>>>(
      codebook, ema_counts, grad, counts, codebook_size, codebook_dim, static_cast<float>(decay),
      static_cast<float>(1 - decay));
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace mirabelle::backend
