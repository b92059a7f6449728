#pragma once

#include "mirabelle/core/device.h"
#include "mirabelle/core/dtype.h"

namespace mirabelle {

/// Calls `body.template operator()<D, T>()` with the compile-time device and floating type that the
/// run-time values name:  dispatch(x.device, x.dtype, [&]<Device D, typename T>() { ... });
/// Both backends have the types that are listed, by default float32 and bfloat16:
/// dispatch<float>(...). The CPU has float32 and float64 in any case.
template <typename... Types, typename Body>
void dispatch(Device device, DType dtype, Body&& body) {
  if constexpr (sizeof...(Types) == 0) return dispatch<float, BFloat16>(device, dtype, body);
  bool known = false;
  const auto run_if = [&]<Device D, typename T>() {
    if (known || dtype != kDTypeOf<T>) return;
    known = true;
    body.template operator()<D, T>();
  };
  if (device == Device::kCpu) {
    run_if.template operator()<Device::kCpu, float>();
    run_if.template operator()<Device::kCpu, double>();
    (run_if.template operator()<Device::kCpu, Types>(), ...);
  } else {
#ifndef MIRABELLE_CUDA
    throw_error(ErrorKind::kOther, "this build has no ", to_string(device), " backend");
#else
    (run_if.template operator()<Device::kCuda, Types>(), ...);
#endif
  }
  MIRABELLE_CHECK(known, "no kernel for ", to_string(dtype), " on ", to_string(device));
}

}  // namespace mirabelle
