#include "cuda/block_reduce.cuh"
#include "cuda/sorted_indices.h"
#include "cuda/vector_load.cuh"
#include "mirabelle/kernels/matmul.h"
#include "mirabelle/kernels/nearest_code.h"

namespace mirabelle::backend {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsPerBlock = kThreads / kWarp;

/// A warp takes a row.
__device__ int64_t row_of_warp() {
  return static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp;
}

__global__ void __launch_bounds__(kThreads)
    half_norms_kernel(float* half_norms, const float* codebook, int64_t codebook_size,
                      int64_t codebook_dim) {
  const int64_t row = row_of_warp();
  if (row >= codebook_size) return;
  float squares = 0;
  for (int64_t c = threadIdx.x % kWarp; c < codebook_dim; c += kWarp) {
    const float x = codebook[row * codebook_dim + c];
    squares += x * x;
  }
  squares = warp_reduce(squares, Add());
  if (threadIdx.x % kWarp == 0) half_norms[row] = squares / 2;
}

struct Nearest {
  float distance;
  int32_t code;
};

/// The nearer; the lower code if both are as near.
__device__ Nearest nearer(Nearest a, Nearest b) {
  const bool first = a.distance < b.distance || (a.distance == b.distance && a.code < b.code);
  return first ? a : b;
}

__global__ void __launch_bounds__(kThreads)
    nearest_kernel(int32_t* codes, const float* half_norms, const float* products, int64_t n,
                   int64_t codebook_size) {
  const int64_t row = row_of_warp();
  if (row >= n) return;
  Nearest best = {kInfinity, 0};
  for (int64_t code = threadIdx.x % kWarp; code < codebook_size; code += kWarp) {
    const float distance = half_norms[code] - products[row * codebook_size + code];
    if (distance < best.distance) best = {distance, static_cast<int32_t>(code)};
  }
#pragma unroll
  for (int away = kWarp / 2; away > 0; away /= 2) {
    best = nearer(best, {__shfl_xor_sync(kAllLanes, best.distance, away),
                         __shfl_xor_sync(kAllLanes, best.code, away)});
  }
  if (threadIdx.x % kWarp == 0) codes[row] = best.code;
}

__global__ void __launch_bounds__(kThreads)
    subtract_kernel(float* residual, const int32_t* codes, const float* codebook,
                    int64_t num_elements, int64_t codebook_dim) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= num_elements) return;
  residual[index] -= codebook[codes[index / codebook_dim] * codebook_dim + index % codebook_dim];
}

/// Block i adds up the run of equal codes that starts at place i of the sorted ones, if one does; a
/// thread takes a column, so the order is that of the residuals.
__global__ void __launch_bounds__(kThreads)
    accumulate_kernel(double* sums, int64_t* counts, const float* residual,
                      const int32_t* sorted_codes, const int32_t* order, int64_t n,
                      int64_t codebook_dim) {
  const int64_t begin = blockIdx.x;
  const int64_t code = sorted_codes[begin];
  if (begin > 0 && sorted_codes[begin - 1] == code) return;
  int64_t end = begin;
  while (end < n && sorted_codes[end] == code) ++end;
  for (int64_t c = threadIdx.x; c < codebook_dim; c += kThreads) {
    double total = sums[code * codebook_dim + c];
    for (int64_t i = begin; i < end; ++i) total += residual[order[i] * codebook_dim + c];
    sums[code * codebook_dim + c] = total;
  }
  if (threadIdx.x == 0) counts[code] += end - begin;
}

}  // namespace

template <>
void nearest_code<Device::kCuda, float>(int32_t* codes, const float* residual,
                                        const float* codebook, int64_t n, int64_t codebook_size,
                                        int64_t codebook_dim, float* workspace,
                                        const Stream& stream) {
  if (n == 0) return;
  float *products = workspace, *half_norms = workspace + n * codebook_size;
  matmul<Device::kCuda, float, float>(products, residual, false, codebook, true, false, n,
                                      codebook_size, codebook_dim, stream);
  half_norms_kernel<<<ceil_div(codebook_size, kRowsPerBlock), kThreads, 0, stream.cuda()>>>(
      half_norms, codebook, codebook_size, codebook_dim);
  CUDA_CHECK(cudaGetLastError());
  nearest_kernel<<<ceil_div(n, kRowsPerBlock), kThreads, 0, stream.cuda()>>>(
      codes, half_norms, products, n, codebook_size);
  CUDA_CHECK(cudaGetLastError());
}

template <>
void subtract_code<Device::kCuda, float>(float* residual, const int32_t* codes,
                                         const float* codebook, int64_t n, int64_t codebook_dim,
                                         const Stream& stream) {
  if (n * codebook_dim == 0) return;
  subtract_kernel<<<ceil_div(n * codebook_dim, kThreads), kThreads, 0, stream.cuda()>>>(
      residual, codes, codebook, n * codebook_dim, codebook_dim);
  CUDA_CHECK(cudaGetLastError());
}

template <>
void accumulate_codes<Device::kCuda, float>(double* sums, int64_t* counts, const float* residual,
                                            const int32_t* codes, int64_t n, int64_t codebook_size,
                                            int64_t codebook_dim, const Stream& stream) {
  if (n == 0) return;
  const SortedIndices sorted = sort_indices(codes, n, codebook_size, stream);
  accumulate_kernel<<<n, kThreads, 0, stream.cuda()>>>(sums, counts, residual, sorted.values,
                                                       sorted.order, n, codebook_dim);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace mirabelle::backend
