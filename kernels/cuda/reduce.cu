#include <algorithm>

#include "cuda/block_reduce.cuh"
#include "cuda/libraries.h"
#include "cuda/vector_load.cuh"
#include "mirabelle/kernels/reduce.h"

namespace mirabelle::backend {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 512;

struct Identity {
  __device__ double operator()(float x) const { return x; }
};
struct Square {
  __device__ double operator()(float x) const { return static_cast<double>(x) * x; }
};

/// partial[block] = sum of the block's vectors; which they are depends on n alone.
template <bool kAligned, typename T, typename Term>
__global__ void __launch_bounds__(kThreads)
    partial_kernel(double* partial, const T* x, int64_t n, Term term) {
  double total = 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads * kVector;
  for (int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVector;
       first < n; first += stride) {
    // past the end there are zeros; the aligned path never gets there
    const Vector values = load_vector<kAligned>(x, first, n);
#pragma unroll
    for (int i = 0; i < kVector; ++i) total += term(values.value[i]);
  }
  total = block_reduce<kThreads>(total, Add());
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

__global__ void __launch_bounds__(kThreads)
    total_kernel(double* out, const double* partial, int64_t num_partials, bool accumulate) {
  double total = 0;
  for (int64_t i = threadIdx.x; i < num_partials; i += kThreads) total += partial[i];
  total = block_reduce<kThreads>(total, Add());
  if (threadIdx.x == 0) *out = accumulate ? *out + total : total;
}

template <typename T, typename Term>
void reduce(double* out, const T* x, int64_t n, Term term, bool accumulate, const Stream& stream) {
  const int64_t blocks = std::clamp<int64_t>(ceil_div(n, kThreads * kVector), 1, kMaxBlocks);
  auto* partial = static_cast<double*>(libraries_of(stream).workspace(kMaxBlocks * sizeof(double)));
  dispatch_flag(rows_are_aligned(n, {x}), [&]<bool kAligned>() {
    partial_kernel<kAligned><<<blocks, kThreads, 0, stream.cuda()>>>(partial, x, n, term);
    CUDA_CHECK(cudaGetLastError());
  });
  total_kernel<<<1, kThreads, 0, stream.cuda()>>>(out, partial, blocks, accumulate);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace

template <Device D, typename T>
void add_sum(double* out, const T* x, int64_t n, const Stream& stream) {
  reduce(out, x, n, Identity(), /*accumulate=*/true, stream);
}

template <Device D, typename T>
void sum_of_squares(double* out, const T* x, int64_t n, const Stream& stream) {
  reduce(out, x, n, Square(), /*accumulate=*/false, stream);
}

template <>
void fill_zero<Device::kCuda>(void* x, int64_t bytes, const Stream& stream) {
  CUDA_CHECK(cudaMemsetAsync(x, 0, bytes, stream.cuda()));
}

#define INSTANTIATE(T)                                                                \
  template void add_sum<Device::kCuda, T>(double*, const T*, int64_t, const Stream&); \
  template void sum_of_squares<Device::kCuda, T>(double*, const T*, int64_t, const Stream&);
INSTANTIATE(float)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
