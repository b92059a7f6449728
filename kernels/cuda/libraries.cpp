#include "cuda/libraries.h"

#include "cuda/cublas_check.h"
#include "cuda/cudnn_check.h"

namespace mirabelle::backend {

void destroy_cublaslt(cublasLtHandle_t handle) { cublasLtDestroy(handle); }
void destroy_cudnn(cudnnHandle_t handle) { cudnnDestroy(handle); }

CudaLibraries::CudaLibraries() {
  cublasLtHandle_t handle = nullptr;
  CUBLAS_CHECK(cublasLtCreate(&handle));
  cublaslt_ = UniqueHandle<cublasLtHandle_t, destroy_cublaslt>(handle);
}

cudnnHandle_t CudaLibraries::cudnn(const Stream& stream) {
  // Up to 9.17 the attention engines for Hopper left some of their scratch unset.
  constexpr size_t kOldest = 91800;
  if (!cudnn_) {
    MIRABELLE_CHECK(cudnnGetVersion() >= kOldest, "cuDNN has version ", cudnnGetVersion(),
                    ", wanted ", kOldest, " or later");
    cudnnHandle_t handle = nullptr;
    CUDNN_CHECK(cudnnCreate(&handle));
    cudnn_ = UniqueHandle<cudnnHandle_t, destroy_cudnn>(handle);
    CUDNN_CHECK(cudnnSetStream(handle, stream.cuda()));
  }
  return cudnn_.get();
}

}  // namespace mirabelle::backend
