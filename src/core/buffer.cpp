#include "mirabelle/core/buffer.h"

#include <algorithm>

namespace mirabelle {
namespace {

constexpr int64_t kAlignment = 64;

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

Buffer::Buffer(int64_t bytes, Device device) : bytes_(bytes) {
  MIRABELLE_CHECK(device == Device::kCpu, "this build has no ", to_string(device), " backend");
  MIRABELLE_CHECK(bytes >= 0, "a buffer of ", bytes, " bytes");
  const int64_t size = std::max(kAlignment, aligned(bytes));
  memory_.reset(std::aligned_alloc(kAlignment, size));
  MIRABELLE_CHECK(memory_ != nullptr, "out of memory: ", size, " bytes on ", to_string(device));
  std::memset(memory_.get(), 0, size);
  whole_ = {memory_.get(), {bytes}, DType::kUint8, device};
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
