#pragma once

#include "mirabelle/core/cuda_check.h"

namespace mirabelle::backend {

namespace detail {
__global__ inline void add_chunks_kernel(float* grad, const float* workspace,
                                         int64_t num_parameters, int64_t num_chunks) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= num_parameters) return;
  float total = 0;
  for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
    total += workspace[chunk * num_parameters + i];
  }
  grad[i] += total;
}
}  // namespace detail

/// grad [num_parameters] += the rows of workspace [num_chunks, num_parameters], one after the
/// other. num_parameters > 0.
inline void add_chunks(float* grad, const float* workspace, int64_t num_parameters,
                       int64_t num_chunks, cudaStream_t stream) {
  constexpr int kThreads = 64;
  detail::add_chunks_kernel<<<(num_parameters + kThreads - 1) / kThreads, kThreads, 0, stream>>>(
      grad, workspace, num_parameters, num_chunks);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace mirabelle::backend
