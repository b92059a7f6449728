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
                   int hidden_size, int vectors_per_row, DropoutArguments dropout) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= num_vectors) return;
  const int64_t token = index / vectors_per_row;
  const int first = static_cast<int>(index % vectors_per_row) * kVector;
  Vector x = load_vector<kAligned>(table + static_cast<int64_t>(tokens[token]) * hidden_size, first,
                                   hidden_size);
  const Vector keep = dropout_keep(dropout, token, first);
#pragma unroll
  for (int i = 0; i < kVector; ++i) x.value[i] *= keep.value[i];
  store_vector<kAligned>(out + token * hidden_size, first, hidden_size, x);
}

/// Block (i, columns) adds up the run of equal tokens that starts at place i of the sorted ones, if
/// one does: each warp every kWarps-th of it, then the warps in their order.
template <bool kAligned, typename T>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(float* grad_table, const T* grad_out, const int32_t* sorted_tokens,
                    const int32_t* order, int64_t num_tokens, int hidden_size,
                    DropoutArguments dropout) {
  const int64_t begin = blockIdx.x;
  const int32_t row = sorted_tokens[begin];
  if (begin > 0 && sorted_tokens[begin - 1] == row) return;
  const int warp = threadIdx.x / kWarp;
  const int first = blockIdx.y * kColumns + threadIdx.x % kWarp * kVector;
  __shared__ float sums[kWarps][kColumns];
  Vector sum = {};
  if (first < hidden_size) {
    for (int64_t i = begin + warp; i < num_tokens && sorted_tokens[i] == row; i += kWarps) {
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
void embedding_forward(T* out, const int32_t* tokens, const T* table, int64_t num_tokens, int64_t,
                       int64_t hidden_size, const DropoutArguments& dropout, const Stream& stream) {
  const int64_t vectors_per_row = ceil_div(hidden_size, kVector);
  const int64_t num_vectors = num_tokens * vectors_per_row;
  if (num_vectors == 0) return;
  dispatch_flag(rows_are_aligned(hidden_size, {out, table}), [&]<bool kAligned>() {
    forward_kernel<kAligned><<<ceil_div(num_vectors, kThreads), kThreads, 0, stream.cuda()>>>(
        out, tokens, table, num_vectors, static_cast<int>(hidden_size),
        static_cast<int>(vectors_per_row), dropout);
    CUDA_CHECK(cudaGetLastError());
  });
}

template <Device D, typename T>
void embedding_backward(Wide<T>* grad_table, const T* grad_out, const int32_t* tokens,
                        int64_t num_tokens, int64_t vocab_size, int64_t hidden_size,
                        const DropoutArguments& dropout, const Stream& stream) {
  if (num_tokens * hidden_size == 0) return;
  const SortedIndices sorted = sort_indices(tokens, num_tokens, vocab_size, stream);
  const dim3 grid(num_tokens, ceil_div(hidden_size, kColumns));
  dispatch_flag(rows_are_aligned(hidden_size, {grad_out}), [&]<bool kAligned>() {
    backward_kernel<kAligned>
        <<<grid, kThreads, 0, stream.cuda()>>>(grad_table, grad_out, sorted.values, sorted.order,
                                               num_tokens, static_cast<int>(hidden_size), dropout);
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

#define INSTANTIATE(T)                                                                          \
  template void embedding_forward<Device::kCuda, T>(T*, const int32_t*, const T*, int64_t,      \
                                                    int64_t, int64_t, const DropoutArguments&,  \
                                                    const Stream&);                             \
  template void embedding_backward<Device::kCuda, T>(float*, const T*, const int32_t*, int64_t, \
                                                     int64_t, int64_t, const DropoutArguments&, \
                                                     const Stream&);                            \
  template void gather_rows<Device::kCuda, T>(T*, const T*, const int32_t*, int64_t, int64_t,   \
                                              int64_t, const Stream&);
INSTANTIATE(float)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
