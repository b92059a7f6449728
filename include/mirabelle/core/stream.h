#pragma once

#include "mirabelle/core/device.h"

namespace mirabelle {

/// An ordered queue of work on one device. On the CPU work is done when the call returns, so a
/// stream is only the name of the device.
class Stream {
 public:
  explicit Stream(Device device = Device::kCpu) : device_(device) {}
  Device device() const { return device_; }

 private:
  Device device_;
};

}  // namespace mirabelle
