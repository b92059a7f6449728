#pragma once

#include <cuda_runtime_api.h>

#include "mirabelle/core/error.h"

/// Throws an Error with CUDA's own words unless the call succeeds. After a kernel launch:
/// CUDA_CHECK(cudaGetLastError()).
#define CUDA_CHECK(call)                                                                           \
  do {                                                                                             \
    const cudaError_t cuda_status = (call);                                                        \
    MIRABELLE_CHECK(cuda_status == cudaSuccess, #call ": ", cudaGetErrorString(cuda_status), " (", \
                    cudaGetErrorName(cuda_status), ") at " __FILE__ ":", __LINE__);                \
  } while (false)
