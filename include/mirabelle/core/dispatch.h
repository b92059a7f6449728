#pragma once

#include "mirabelle/core/device.h"
#include "mirabelle/core/dtype.h"

namespace mirabelle {

/// Calls `body.template operator()<D, T>()` with the compile-time device and floating type that the
/// run-time values name:  dispatch(x.device, x.dtype, [&]<Device D, typename T>() { ... });
template <typename Body>
decltype(auto) dispatch(Device device, DType dtype, Body&& body) {
  MIRABELLE_CHECK(device == Device::kCpu, "this build has no ", to_string(device), " backend");
  switch (dtype) {
    case DType::kFloat32:
      return body.template operator()<Device::kCpu, float>();
    case DType::kFloat64:
      return body.template operator()<Device::kCpu, double>();
    default:
      throw_error(ErrorKind::kOther, "no kernel for dtype ", to_string(dtype));
  }
}

}  // namespace mirabelle
