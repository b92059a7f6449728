#pragma once

#include "check_operand.h"

namespace mirabelle {

/// Throws unless `offsets` is [num_parts + 1] int32, and, where the host can read it, runs from 0
/// to `end` without a step back.
inline void check_offsets(const char* name, const TensorView& offsets, int64_t end,
                          const TensorView& like) {
  MIRABELLE_CHECK(offsets.shape.rank() == 1 && offsets.shape[0] >= 1, name, " has shape ",
                  offsets.shape, ", wanted [parts + 1]");
  check_indices(name, offsets, offsets.shape, like);
  if (offsets.device != Device::kCpu) return;
  const int32_t* values = offsets.as<int32_t>();
  const int64_t num_parts = offsets.shape[0] - 1;
  MIRABELLE_CHECK(values[0] == 0 && values[num_parts] == end, name, " runs from ", values[0],
                  " to ", values[num_parts], ", wanted from 0 to ", end);
  for (int64_t i = 0; i < num_parts; ++i) {
    MIRABELLE_CHECK(values[i] <= values[i + 1], name, "[", i + 1, "] is ", values[i + 1],
                    ", wanted at least ", values[i]);
  }
}

}  // namespace mirabelle
