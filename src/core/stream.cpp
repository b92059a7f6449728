#include "mirabelle/core/stream.h"

#include "mirabelle/core/error.h"

#ifdef MIRABELLE_CUDA
#include "mirabelle/core/activity.h"
#include "mirabelle/core/cuda_check.h"
#endif

namespace mirabelle {

#ifdef MIRABELLE_CUDA

Stream::Stream(Device device, bool reproducible) : device_(device), reproducible_(reproducible) {
  if (device == Device::kCpu) return;
  cudaStream_t stream = nullptr;
  CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  cuda_ = UniqueHandle<CUstream_st*, &Stream::destroy>(stream);
}

void Stream::destroy(CUstream_st* stream) { cudaStreamDestroy(stream); }

void Stream::synchronize() const {
  if (!cuda_) return;
  const Activity wait("synchronize",
                      "GPU");  // collectives of other ranks may be a part of its work
  CUDA_CHECK(cudaStreamSynchronize(cuda_.get()));
}

void Event::record(const Stream& stream) {
  if (stream.device() == Device::kCpu) return;
  if (!cuda_) {
    cudaEvent_t event = nullptr;
    CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    cuda_ = UniqueHandle<CUevent_st*, &Event::destroy>(event);
  }
  CUDA_CHECK(cudaEventRecord(cuda_.get(), stream.cuda()));
}

void Event::hold(const Stream& stream) const {
  if (cuda_) CUDA_CHECK(cudaStreamWaitEvent(stream.cuda(), cuda_.get(), 0));
}

void Event::synchronize() const {
  if (!cuda_) return;
  const Activity wait("synchronize", "GPU");
  CUDA_CHECK(cudaEventSynchronize(cuda_.get()));
}

bool Event::is_reached() const {
  if (!cuda_) return true;
  const cudaError_t status = cudaEventQuery(cuda_.get());
  if (status == cudaErrorNotReady) return false;
  CUDA_CHECK(status);
  return true;
}

void Event::destroy(CUevent_st* event) { cudaEventDestroy(event); }

#else

Stream::Stream(Device device, bool reproducible) : device_(device), reproducible_(reproducible) {
  MIRABELLE_CHECK(device == Device::kCpu, "this build has no ", to_string(device), " backend");
}

void Stream::destroy(CUstream_st*) {}

void Stream::synchronize() const {}

void Event::record(const Stream&) {}
void Event::hold(const Stream&) const {}
void Event::synchronize() const {}
bool Event::is_reached() const { return true; }
void Event::destroy(CUevent_st*) {}

#endif

}  // namespace mirabelle
