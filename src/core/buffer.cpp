#include "mirabelle/core/buffer.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#ifdef MIRABELLE_CUDA
#include "mirabelle/core/cuda_check.h"
#endif

namespace mirabelle {
namespace {

constexpr int64_t kAlignment = 64;

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

/// Zeroed memory, or null if there is not enough.
void* allocate_zeroed(int64_t size, Device device) {
  void* memory = nullptr;
  if (device == Device::kCpu) {
    memory = std::aligned_alloc(kAlignment, size);
    if (memory != nullptr) std::memset(memory, 0, size);
    return memory;
  }
#ifdef MIRABELLE_CUDA
  const cudaError_t status = cudaMalloc(&memory, size);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // is reported here, not by the next call
    return nullptr;
  }
  CUDA_CHECK(status);
  CUDA_CHECK(cudaMemset(memory, 0, size));
  CUDA_CHECK(cudaStreamSynchronize(nullptr));  // our streams do not wait for the default one
  return memory;
#else
  throw_error(ErrorKind::kOther, "this build has no ", to_string(device), " backend");
#endif
}

}  // namespace

void Buffer::Free::operator()(void* memory) const {
#ifdef MIRABELLE_CUDA
  if (is_pinned) {
    cudaFreeHost(memory);
    return;
  }
  if (device == Device::kCuda) cudaFree(memory);
#endif
  if (device == Device::kCpu) std::free(memory);
}

Buffer::Buffer(int64_t bytes, Device device) : bytes_(bytes) {
  MIRABELLE_CHECK(bytes >= 0, "a buffer of ", bytes, " bytes");
  const int64_t size = std::max(kAlignment, aligned(bytes));
  memory_ = {allocate_zeroed(size, device), Free{device, /*is_pinned=*/false}};
  MIRABELLE_CHECK(memory_ != nullptr, "out of memory: ", size, " bytes on ", to_string(device));
  whole_ = {memory_.get(), {bytes}, DType::kUint8, device};
}

Buffer Buffer::pinned([[maybe_unused]] const Shape& shape, [[maybe_unused]] DType dtype) {
  Buffer buffer;
#ifdef MIRABELLE_CUDA
  buffer.bytes_ = shape.num_elements() * size_in_bytes(dtype);
  const int64_t size = std::max(kAlignment, aligned(buffer.bytes_));
  void* memory = nullptr;
  CUDA_CHECK(cudaMallocHost(&memory, size));
  buffer.memory_ = {memory, Free{Device::kCpu, /*is_pinned=*/true}};
  std::memset(memory, 0, size);
  buffer.whole_ = {memory, shape, dtype, Device::kCpu};
#else
  throw_error(ErrorKind::kOther, "this build has no cuda backend");
#endif
  return buffer;
}

TensorView Arena::allocate(const Shape& shape, DType dtype) {
  const int64_t bytes = aligned(shape.num_elements() * size_in_bytes(dtype));
  MIRABELLE_CHECK(counting_ || used_ + bytes <= buffer_.bytes(), "the arena of ", buffer_.bytes(),
                  " bytes has ", buffer_.bytes() - used_, " left; ", bytes, " are wanted for ",
                  shape);
  char* base = counting_ ? nullptr : static_cast<char*>(buffer_.data()) + used_;
  used_ += bytes;
  peak_ = std::max(peak_, used_);
  return {base, shape, dtype, device_};
}

}  // namespace mirabelle
