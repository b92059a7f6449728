#include <algorithm>

#include "cuda/block_reduce.cuh"
#include "cuda/sorted_indices.h"
#include "cuda/vector_load.cuh"
#include "mirabelle/kernels/matmul.h"
#include "mirabelle/kernels/nearest_code.h"

namespace mirabelle::backend {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;  // of a block

/// A warp takes a row.
__device__ int64_t row_of_warp() {
  return static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
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

__global__ void __launch_bounds__(kThreads)
    distances_kernel(float* distances, const float* residual, const int32_t* codes,
                     const float* codebook, int64_t n, int64_t codebook_dim) {
  const int64_t row = row_of_warp();
  if (row >= n) return;
  const float* x = residual + row * codebook_dim;
  const float* code = codebook + codes[row] * codebook_dim;
  float squares = 0;
  for (int64_t c = threadIdx.x % kWarp; c < codebook_dim; c += kWarp) {
    const float difference = x[c] - code[c];
    squares += difference * difference;
  }
  squares = warp_reduce(squares, Add());
  if (threadIdx.x % kWarp == 0) distances[row] = squares;
}

/// The first place of the ascending `values` [n] with one that is not below `value`.
__device__ int64_t first_not_below(const int32_t* values, int64_t n, int64_t value) {
  int64_t begin = 0, end = n;
  while (begin < end) {
    const int64_t middle = (begin + end) / 2;
    if (values[middle] < value) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

/// Block (code, columns) adds up the residuals of one code in 32 columns: each warp every kWarps-th
/// residual, then the warps in their order.
__global__ void __launch_bounds__(kThreads)
    accumulate_kernel(double* sums, int64_t* counts, const float* residual,
                      const int32_t* sorted_codes, const int32_t* order, int64_t n,
                      int64_t codebook_dim) {
  const int64_t code = blockIdx.x;
  const int64_t begin = first_not_below(sorted_codes, n, code);
  const int64_t end = first_not_below(sorted_codes, n, code + 1);
  if (begin == end) return;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t column = static_cast<int64_t>(blockIdx.y) * kWarp + lane;
  double sum = 0;
  if (column < codebook_dim) {
#pragma unroll 4
    for (int64_t i = begin + warp; i < end; i += kWarps) {
      sum += residual[order[i] * codebook_dim + column];
    }
  }
  __shared__ double of_warp[kWarps][kWarp];
  of_warp[warp][lane] = sum;
  __syncthreads();
  if (warp > 0) return;
  if (column < codebook_dim) {
    double total = sums[code * codebook_dim + column];
    for (int w = 0; w < kWarps; ++w) total += of_warp[w][lane];
    sums[code * codebook_dim + column] = total;
  }
  if (blockIdx.y == 0 && lane == 0) counts[code] += end - begin;
}

}  // namespace

template <>
void nearest_code<Device::kCuda, float>(int32_t* codes, const float* residual,
                                        const float* codebook, int64_t n, int64_t codebook_size,
                                        int64_t codebook_dim, float* workspace,
                                        const Stream& stream) {
  if (n == 0) return;
  float *products = workspace, *half_norms = workspace + n * codebook_size;
  matmul<Device::kCuda, float, float>(products, residual, false, codebook, true, false, 1, n,
                                      codebook_size, codebook_dim, stream);
  half_norms_kernel<<<ceil_div(codebook_size, kWarps), kThreads, 0, stream.cuda()>>>(
      half_norms, codebook, codebook_size, codebook_dim);
  CUDA_CHECK(cudaGetLastError());
  nearest_kernel<<<ceil_div(n, kWarps), kThreads, 0, stream.cuda()>>>(codes, half_norms, products,
                                                                      n, codebook_size);
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
void code_distances<Device::kCuda, float>(float* distances, const float* residual,
                                          const int32_t* codes, const float* codebook, int64_t n,
                                          int64_t codebook_dim, const Stream& stream) {
  if (n == 0) return;
  distances_kernel<<<ceil_div(n, kWarps), kThreads, 0, stream.cuda()>>>(distances, residual, codes,
                                                                        codebook, n, codebook_dim);
  CUDA_CHECK(cudaGetLastError());
}

template <>
void accumulate_codes<Device::kCuda, float>(double* sums, int64_t* counts, const float* residual,
                                            const int32_t* codes, int64_t n, int64_t codebook_size,
                                            int64_t codebook_dim, const Stream& stream) {
  if (n == 0) return;
  const SortedIndices sorted = sort_indices(codes, n, 0, codebook_size, stream);
  // A block for counts even where a residual has no columns.
  const dim3 grid(codebook_size, std::max<int64_t>(1, ceil_div(codebook_dim, kWarp)));
  accumulate_kernel<<<grid, kThreads, 0, stream.cuda()>>>(sums, counts, residual, sorted.values,
                                                          sorted.order, n, codebook_dim);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace mirabelle::backend
