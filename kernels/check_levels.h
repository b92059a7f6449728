#pragma once

#include "check_operand.h"

namespace mirabelle {

/// Throws unless `bounds` are [num_levels + 1] int32, for one level or more, on the device of
/// `like`.
inline void check_level_bounds(const TensorView& bounds, const TensorView& like) {
  MIRABELLE_CHECK(bounds.shape.rank() == 1 && bounds.shape[0] >= 2, "level_bounds have shape ",
                  bounds.shape, ", wanted [num_levels + 1]");
  check_indices("level_bounds", bounds, bounds.shape, like);
}

}  // namespace mirabelle
