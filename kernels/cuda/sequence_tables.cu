#include "cuda/sequence_tables.h"
#include "cuda/vector_load.cuh"
#include "mirabelle/core/cuda_check.h"

namespace mirabelle::backend {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads)
    tables_kernel(SequenceTables tables, int size, const int32_t* offsets, int num_sequences,
                  int qkv_stride, int out_stride, int num_heads) {
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (i > size) return;
  const int begin = offsets[min(i, num_sequences)];
  tables.qkv_offsets[i] = begin * qkv_stride;
  tables.out_offsets[i] = begin * out_stride;
  tables.log_sum_offsets[i] = begin * num_heads;
  if (i < size) tables.lengths[i] = offsets[min(i + 1, num_sequences)] - begin;
}

}  // namespace

void fill_sequence_tables(const SequenceTables& tables, int64_t size, const int32_t* offsets,
                          int64_t num_sequences, int64_t qkv_stride, int64_t out_stride,
                          int64_t num_heads, const Stream& stream) {
  tables_kernel<<<ceil_div(size + 1, kThreads), kThreads, 0, stream.cuda()>>>(
      tables, static_cast<int>(size), offsets, static_cast<int>(num_sequences),
      static_cast<int>(qkv_stride), static_cast<int>(out_stride), static_cast<int>(num_heads));
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace mirabelle::backend
