#include "cuda/block_reduce.cuh"
#include "cuda/vector_load.cuh"
#include "mirabelle/kernels/contrastive.h"

namespace mirabelle::backend {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    logits_kernel(float* logits, const int32_t* partners, int64_t num_elements, int64_t num_columns,
                  int64_t first_row, float factor) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= num_elements) return;
  const int64_t row = first_row + index / num_columns, column = index % num_columns;
  const bool is_absent = column == row || partners[column] < 0;
  logits[index] = is_absent ? -kInfinity : factor * logits[index];
}

}  // namespace

template <>
void contrastive_logits<Device::kCuda, float>(float* logits, const int32_t* partners,
                                              int64_t num_rows, int64_t num_columns,
                                              int64_t first_row, double temperature,
                                              const Stream& stream) {
  const int64_t num_elements = num_rows * num_columns;
  if (num_elements == 0) return;
  logits_kernel<<<ceil_div(num_elements, kThreads), kThreads, 0, stream.cuda()>>>(
      logits, partners, num_elements, num_columns, first_row, static_cast<float>(1 / temperature));
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace mirabelle::backend
