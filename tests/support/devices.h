#pragma once

#include <gtest/gtest.h>

#include <ostream>

#include "mirabelle/core/device.h"

namespace mirabelle {

inline void PrintTo(Device device, std::ostream* out) { *out << to_string(device); }

namespace testing {

/// The devices that this build knows.
inline constexpr Device kDevices[] = {
    Device::kCpu,
#ifdef MIRABELLE_CUDA
    Device::kCuda,
#endif
};

/// The fixture of tests above the kernels that run on every device. Cases on a GPU are skipped,
/// visibly, where there is none.
class DeviceTest : public ::testing::TestWithParam<Device> {
 protected:
  void SetUp() override {
    if (GetParam() == Device::kCuda && num_cuda_devices() == 0) GTEST_SKIP() << "no GPU";
  }
};

/// Instantiates a TEST_P suite for all devices.
#define MIRABELLE_INSTANTIATE_DEVICES(Suite)                                                    \
  INSTANTIATE_TEST_SUITE_P(Devices, Suite, ::testing::ValuesIn(::mirabelle::testing::kDevices), \
                           [](const auto& info) { return to_string(info.param); })

}  // namespace testing
}  // namespace mirabelle
