#pragma once

#include "mirabelle/core/dtype.h"
#include "mirabelle/core/stream.h"

namespace mirabelle {

/// out[i] = sum over r < size of x_r[i] for i < n, in the binary tree that Communicator describes:
/// x_rank is `own`, every other x_r begins at element r * stride of `received`. `out` may be `own`.
/// GPU memory of float32, float64 or bfloat16. Enqueues on `stream` and returns.
void tree_sum(void* out, const void* own, const void* received, int64_t stride, int rank, int size,
              int64_t n, DType dtype, const Stream& stream);

}  // namespace mirabelle
