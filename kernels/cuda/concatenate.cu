#include "cuda/vector_load.cuh"
#include "mirabelle/kernels/concatenate.h"

namespace mirabelle::backend {
namespace {

constexpr int kThreads = 256;

/// A thread moves one element, or a piece of several.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    concatenate_kernel(T* out, const T* x, int64_t num_rows, int64_t num_columns,
                       int64_t shard_columns) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= num_rows * num_columns) return;
  const int64_t row = index / num_columns, column = index % num_columns;
  const int64_t shard = column / shard_columns;
  out[index] = x[(shard * num_rows + row) * shard_columns + column % shard_columns];
}

template <typename T>
void concatenate(T* out, const T* x, int64_t num_rows, int64_t num_columns, int64_t shard_columns,
                 const Stream& stream) {
  concatenate_kernel<<<ceil_div(num_rows * num_columns, kThreads), kThreads, 0, stream.cuda()>>>(
      out, x, num_rows, num_columns, shard_columns);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace

template <Device D, typename T>
void concatenate_columns(T* out, const T* x, int64_t num_rows, int64_t num_columns,
                         int64_t shard_columns, const Stream& stream) {
  if (num_rows * num_columns == 0) return;
  if (rows_are_aligned(num_columns, {out}) && rows_are_aligned(shard_columns, {x})) {
    constexpr int64_t kPerPiece = sizeof(uint4) / sizeof(T);
    concatenate(reinterpret_cast<uint4*>(out), reinterpret_cast<const uint4*>(x), num_rows,
                num_columns / kPerPiece, shard_columns / kPerPiece, stream);
  } else {
    concatenate(out, x, num_rows, num_columns, shard_columns, stream);
  }
}

#define INSTANTIATE(T)                                                                      \
  template void concatenate_columns<Device::kCuda>(T*, const T*, int64_t, int64_t, int64_t, \
                                                   const Stream&);
INSTANTIATE(float)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
