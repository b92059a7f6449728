#include "cuda/block_reduce.cuh"
#include "cuda/dropout_mask.cuh"
#include "cuda/sorted_indices.h"
#include "mirabelle/kernels/embedding.h"

namespace mirabelle::backend {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kColumns = kWarp * kVector;  // of a block of the backward pass

/// A thread takes eight features of a row.
template <bool kAligned, typename T>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(T* out, const int32_t* tokens, const T* table, int64_t num_vectors,
                   int64_t num_rows, int hidden_size, int vectors_per_row, int64_t first_token,
                   DropoutArguments dropout) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= num_vectors) return;
  const int64_t token = index / vectors_per_row;
  const int first = static_cast<int>(index % vectors_per_row) * kVector;
  const int64_t row = tokens[token] - first_token;
  Vector x = {};
  if (0 <= row && row < num_rows) {
    x = load_vector<kAligned>(table + row * hidden_size, first, hidden_size);
    const Vector keep = dropout_keep(dropout, token, first);
#pragma unroll
    for (int i = 0; i < kVector; ++i) x.value[i] = x.value[i] * keep.value[i] + 0.0f;  // no -0
  }
  store_vector<kAligned>(out + token * hidden_size, first, hidden_size, x);
}

/// Block (i, columns) adds up the run of equal rows that starts at place i of the sorted ones, if
/// one of the table does: each warp every kWarps-th of it, then the warps in their order.
template <bool kAligned, typename T>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(float* grad_table, const T* grad_out, const int32_t* sorted_rows,
                    const int32_t* order, int64_t num_tokens, int64_t num_rows, int hidden_size,
                    DropoutArguments dropout) {
  const int64_t begin = blockIdx.x;
  const int32_t row = sorted_rows[begin];
  if (row == num_rows || (begin > 0 && sorted_rows[begin - 1] == row)) return;
  const int warp = threadIdx.x / kWarp;
  const int first = blockIdx.y * kColumns + threadIdx.x % kWarp * kVector;
  __shared__ float sums[kWarps][kColumns];
  Vector sum = {};
  if (first < hidden_size) {
    for (int64_t i = begin + warp; i < num_tokens && sorted_rows[i] == row; i += kWarps) {
      const int64_t token = order[i];
      const Vector dy = load_vector<kAligned>(grad_out + token * hidden_size, first, hidden_size);
      const Vector keep = dropout_keep(dropout, token, first);
#pragma unroll
      for (int j = 0; j < kVector; ++j) sum.value[j] += keep.value[j] * dy.value[j];
    }
  }
#pragma unroll
  for (int j = 0; j < kVector; ++j) sums[warp][threadIdx.x % kWarp * kVector + j] = sum.value[j];
  __syncthreads();
  const int column = blockIdx.y * kColumns + threadIdx.x;  // kThreads == kColumns
  if (column >= hidden_size) return;
  float total = 0;
  for (int w = 0; w < kWarps; ++w) total += sums[w][threadIdx.x];
  grad_table[static_cast<int64_t>(row) * hidden_size + column] += total;
}
static_assert(kThreads == kColumns);

template <typename T>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(T* out, const T* x, const int32_t* indices, int64_t num_elements,
                  int64_t row_size) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= num_elements) return;
  out[index] = x[indices[index / row_size] * row_size + index % row_size];
}

}  // namespace

template <Device D, typename T>
void embedding_forward(T* out, const int32_t* tokens, const T* table, int64_t num_tokens,
                       int64_t num_rows, int64_t hidden_size, int64_t first_token,
                       const DropoutArguments& dropout, const Stream& stream) {
  const int64_t vectors_per_row = ceil_div(hidden_size, kVector);
  const int64_t num_vectors = num_tokens * vectors_per_row;
  if (num_vectors == 0) return;
  dispatch_flag(rows_are_aligned(hidden_size, {out, table}), [&]<bool kAligned>() {
    forward_kernel<kAligned><<<ceil_div(num_vectors, kThreads), kThreads, 0, stream.cuda()>>>(
        out, tokens, table, num_vectors, num_rows, static_cast<int>(hidden_size),
        static_cast<int>(vectors_per_row), first_token, dropout);
    CUDA_CHECK(cudaGetLastError());
  });
}

template <Device D, typename T>
void embedding_backward(Wide<T>* grad_table, const T* grad_out, const int32_t* tokens,
                        int64_t num_tokens, int64_t num_rows, int64_t hidden_size,
                        int64_t first_token, const DropoutArguments& dropout,
                        const Stream& stream) {
  if (num_tokens * num_rows * hidden_size == 0) return;
  const SortedIndices sorted = sort_indices(tokens, num_tokens, first_token, num_rows, stream);
  const dim3 grid(num_tokens, ceil_div(hidden_size, kColumns));
  dispatch_flag(rows_are_aligned(hidden_size, {grad_out}), [&]<bool kAligned>() {
    backward_kernel<kAligned><<<grid, kThreads, 0, stream.cuda()>>>(
        grad_table, grad_out, sorted.values, sorted.order, num_tokens, num_rows,
        static_cast<int>(hidden_size), dropout);
    CUDA_CHECK(cudaGetLastError());
  });
}

// Rows of bytes are moved in the widest pieces that fit, whatever their type.
template <Device D, typename T>
void gather_rows(T* out, const T* x, const int32_t* indices, int64_t num_out_rows, int64_t,
                 int64_t row_size, const Stream& stream) {
  if (num_out_rows * row_size == 0) return;
  if (rows_are_aligned(row_size, {out, x})) {
    const int64_t pieces_per_row = row_size * sizeof(T) / sizeof(uint4);
    const int64_t num_pieces = num_out_rows * pieces_per_row;
    gather_kernel<<<ceil_div(num_pieces, kThreads), kThreads, 0, stream.cuda()>>>(
        reinterpret_cast<uint4*>(out), reinterpret_cast<const uint4*>(x), indices, num_pieces,
        pieces_per_row);
  } else {
    const int64_t num_elements = num_out_rows * row_size;
    gather_kernel<<<ceil_div(num_elements, kThreads), kThreads, 0, stream.cuda()>>>(
        out, x, indices, num_elements, row_size);
  }
  CUDA_CHECK(cudaGetLastError());
}

#define INSTANTIATE(T)                                                                            \
  template void embedding_forward<Device::kCuda, T>(T*, const int32_t*, const T*, int64_t,        \
                                                    int64_t, int64_t, int64_t,                    \
                                                    const DropoutArguments&, const Stream&);      \
  template void embedding_backward<Device::kCuda, T>(Wide<T>*, const T*, const int32_t*, int64_t, \
                                                     int64_t, int64_t, int64_t,                   \
                                                     const DropoutArguments&, const Stream&);     \
  template void gather_rows<Device::kCuda, T>(T*, const T*, const int32_t*, int64_t, int64_t,     \
                                              int64_t, const Stream&);
INSTANTIATE(float)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
