#pragma once

#include <memory>

#include "mirabelle/core/device.h"
#include "mirabelle/core/unique_handle.h"

struct CUstream_st;

namespace mirabelle {

/// An ordered queue of work on one device. On the CPU work is done when the call returns, so a
/// stream is only the name of the device; on a GPU calls return at once.
class Stream {
 public:
  explicit Stream(Device device = Device::kCpu);

  Device device() const { return device_; }
  CUstream_st* cuda() const { return cuda_.get(); }  ///< a cudaStream_t; null on the CPU

  /// Waits until all work is done; throws what went wrong in it.
  void synchronize() const;

  /// What a backend keeps with a stream (library handles, workspaces, plans): made by its first
  /// use, freed before the stream.
  std::shared_ptr<void>& attachment() const { return attachment_; }

 private:
  static void destroy(CUstream_st* stream);
  Device device_;
  UniqueHandle<CUstream_st*, &Stream::destroy> cuda_;
  mutable std::shared_ptr<void> attachment_;
};

}  // namespace mirabelle
