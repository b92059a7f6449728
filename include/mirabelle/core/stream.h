#pragma once

#include <memory>

#include "mirabelle/core/device.h"
#include "mirabelle/core/unique_handle.h"

struct CUstream_st;
struct CUevent_st;

namespace mirabelle {

/// An ordered queue of work on one device. On the CPU work is done when the call returns, so a
/// stream is only the name of the device; on a GPU calls return at once.
class Stream {
 public:
  explicit Stream(Device device = Device::kCpu, bool reproducible = true);

  Device device() const { return device_; }
  /// Whether kernels on this stream choose only implementations whose results are the same bits on
  /// every run: sums in a fixed order, no atomics. On the CPU all are.
  bool reproducible() const { return reproducible_; }
  CUstream_st* cuda() const { return cuda_.get(); }  ///< a cudaStream_t; null on the CPU

  /// Waits until all work is done; throws what went wrong in it.
  void synchronize() const;

  /// What a backend keeps with a stream (library handles, workspaces, plans): made by its first
  /// use, freed before the stream.
  std::shared_ptr<void>& attachment() const { return attachment_; }

 private:
  static void destroy(CUstream_st* stream);
  Device device_;
  bool reproducible_;
  UniqueHandle<CUstream_st*, &Stream::destroy> cuda_;
  mutable std::shared_ptr<void> attachment_;
};

/// A point in the work of a stream, for others to wait for. On the CPU all work is done already.
class Event {
 public:
  Event() = default;  ///< of no work: nobody waits

  /// The end of what is on `stream` now.
  void record(const Stream& stream);
  /// Later work on `stream` waits for the point.
  void hold(const Stream& stream) const;
  /// The host waits for it.
  void synchronize() const;
  /// Whether it is reached. Throws what went wrong before it.
  bool is_reached() const;

 private:
  static void destroy(CUevent_st* event);
  UniqueHandle<CUevent_st*, &Event::destroy> cuda_;
};

}  // namespace mirabelle
