#pragma once

#include <memory>

#include "mirabelle/core/tensor.h"

namespace mirabelle {

/// Owns zero-initialised memory, aligned to 64 bytes (256 on a GPU), on one device.
class Buffer {
 public:
  Buffer() = default;
  Buffer(int64_t bytes, Device device);
  Buffer(const Shape& shape, DType dtype, Device device = Device::kCpu)
      : Buffer(shape.num_elements() * size_in_bytes(dtype), device) {
    whole_ = {memory_.get(), shape, dtype, device};
  }

  /// On the host, where a GPU copies from and to while the host goes on. Only in builds with CUDA.
  static Buffer pinned(const Shape& shape, DType dtype);

  /// All of it, in the shape and dtype that it was made with.
  const TensorView& view() const { return whole_; }
  void* data() const { return memory_.get(); }
  int64_t bytes() const { return bytes_; }

 private:
  struct Free {
    Device device;
    bool is_pinned;
    void operator()(void* memory) const;
  };
  std::unique_ptr<void, Free> memory_;
  int64_t bytes_ = 0;
  TensorView whole_;
};

/// Hands out views of one allocation, one after the other, so that the memory of a step is known
/// before the step. An arena without memory only counts: make the same allocations on it first to
/// learn how many bytes the real one needs.
class Arena {
 public:
  explicit Arena(Device device) : device_(device) {}
  Arena(int64_t bytes, Device device) : buffer_(bytes, device), device_(device), counting_(false) {}

  /// A view of uninitialised memory, aligned to 64 bytes. Throws if the arena is used up.
  TensorView allocate(const Shape& shape, DType dtype);

  /// Everything allocated after `mark = bytes_used()` is given back by `rewind(mark)`.
  int64_t bytes_used() const { return used_; }
  int64_t peak_bytes() const { return peak_; }
  void rewind(int64_t mark) { used_ = mark; }

 private:
  Buffer buffer_;
  Device device_;
  bool counting_ = true;
  int64_t used_ = 0;
  int64_t peak_ = 0;
};

}  // namespace mirabelle
