#include "cuda/add_chunks.cuh"
#include "cuda/vector_load.cuh"
#include "mirabelle/kernels/bias.h"

namespace mirabelle::backend {
namespace {

constexpr int kThreads = 256;
constexpr int kColumnsPerBlock = 128;

template <bool kAligned, typename T>
__global__ void __launch_bounds__(kThreads)
    add_kernel(T* x, const T* bias, int64_t num_rows, int64_t num_columns,
               int64_t vectors_per_row) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t row = index / vectors_per_row, first = index % vectors_per_row * kVector;
  if (row >= num_rows) return;
  Vector values = load_vector<kAligned>(x + row * num_columns, first, num_columns);
  const Vector shift = load_vector<kAligned>(bias, first, num_columns);
#pragma unroll
  for (int i = 0; i < kVector; ++i) values.value[i] += shift.value[i];
  store_vector<kAligned>(x + row * num_columns, first, num_columns, values);
}

/// A block takes some columns of a chunk of rows, a thread one of them.
template <typename T>
__global__ void __launch_bounds__(kColumnsPerBlock)
    backward_kernel(float* workspace, const T* grad, int64_t num_rows, int64_t num_columns,
                    int64_t num_chunks) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumnsPerBlock + threadIdx.x;
  if (column >= num_columns) return;
  const int64_t chunk = blockIdx.y;
  const int64_t begin = chunk * num_rows / num_chunks, end = (chunk + 1) * num_rows / num_chunks;
  float sum = 0;
  for (int64_t row = begin; row < end; ++row) {
    sum += static_cast<float>(grad[row * num_columns + column]);
  }
  workspace[chunk * num_columns + column] = sum;
}

}  // namespace

template <Device D, typename T>
void add_bias(T* x, const T* bias, int64_t num_rows, int64_t num_columns, const Stream& stream) {
  const int64_t vectors_per_row = ceil_div(num_columns, kVector);
  const int64_t num_vectors = num_rows * vectors_per_row;
  if (num_vectors == 0) return;
  dispatch_flag(rows_are_aligned(num_columns, {x, bias}), [&]<bool kAligned>() {
    add_kernel<kAligned><<<ceil_div(num_vectors, kThreads), kThreads, 0, stream.cuda()>>>(
        x, bias, num_rows, num_columns, vectors_per_row);
    CUDA_CHECK(cudaGetLastError());
  });
}

template <Device D, typename T>
void bias_backward(Wide<T>* grad_bias, const T* grad, int64_t num_rows, int64_t num_columns,
                   int64_t num_chunks, Wide<T>* workspace, const Stream& stream) {
  if (num_columns == 0) return;
  const dim3 blocks(static_cast<unsigned>(ceil_div(num_columns, kColumnsPerBlock)),
                    static_cast<unsigned>(num_chunks));
  backward_kernel<<<blocks, kColumnsPerBlock, 0, stream.cuda()>>>(workspace, grad, num_rows,
                                                                  num_columns, num_chunks);
  CUDA_CHECK(cudaGetLastError());
  add_chunks(grad_bias, workspace, num_columns, num_chunks, stream.cuda());
}

#define INSTANTIATE(T)                                                                       \
  template void add_bias<Device::kCuda, T>(T*, const T*, int64_t, int64_t, const Stream&);   \
  template void bias_backward<Device::kCuda, T>(float*, const T*, int64_t, int64_t, int64_t, \
                                                float*, const Stream&);
INSTANTIATE(float)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
