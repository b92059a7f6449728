#pragma once

#include <chrono>

namespace mirabelle {

/// Of a clock that never jumps.
inline double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace mirabelle
