#pragma once

#include <vector>

#include "mirabelle/comm/communicator.h"

namespace mirabelle {

/// out[i] = op over k of operands[k][i] for i < n, all in host memory of this dtype, in the binary
/// tree that Communicator describes. `out` may be one of the operands.
void reduce_in_tree(void* out, const std::vector<const void*>& operands, int64_t n, DType dtype,
                    ReduceOp op);

}  // namespace mirabelle
