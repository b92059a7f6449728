#pragma once

#include <cstdint>

namespace mirabelle::backend {

/// Below this many elements a memory-bound loop is faster on one thread than the fork and join of
/// several (about 5 us, in which one core handles about this many).
inline constexpr int64_t kParallelThreshold = 16384;

}  // namespace mirabelle::backend
