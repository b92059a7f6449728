#include "mirabelle/core/stream.h"

#include "mirabelle/core/error.h"

#ifdef MIRABELLE_CUDA
#include "mirabelle/core/cuda_check.h"
#endif

namespace mirabelle {

#ifdef MIRABELLE_CUDA

Stream::Stream(Device device) : device_(device) {
  if (device == Device::kCpu) return;
  cudaStream_t stream = nullptr;
  CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  cuda_ = UniqueHandle<CUstream_st*, &Stream::destroy>(stream);
}

void Stream::destroy(CUstream_st* stream) { cudaStreamDestroy(stream); }

void Stream::synchronize() const {
  if (cuda_) CUDA_CHECK(cudaStreamSynchronize(cuda_.get()));
}

#else

Stream::Stream(Device device) : device_(device) {
  MIRABELLE_CHECK(device == Device::kCpu, "this build has no ", to_string(device), " backend");
}

void Stream::destroy(CUstream_st*) {}

void Stream::synchronize() const {}

#endif

}  // namespace mirabelle
