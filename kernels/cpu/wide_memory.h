#pragma once

#include <cstdint>
#include <vector>

namespace mirabelle::backend {

/// Memory for n floats that the calling thread keeps from one call to the next, which overwrites
/// it: where bfloat16 is converted before it is worked on.
inline float* wide_memory(int64_t n) {
  thread_local std::vector<float> memory;
  if (static_cast<int64_t>(memory.size()) < n) memory.resize(n);
  return memory.data();
}

}  // namespace mirabelle::backend
