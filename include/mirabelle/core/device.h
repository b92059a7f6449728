#pragma once

namespace mirabelle {

/// Where memory lives and which backend of a kernel runs.
enum class Device { kCpu, kCuda };

inline const char* to_string(Device device) { return device == Device::kCpu ? "cpu" : "cuda"; }

}  // namespace mirabelle
