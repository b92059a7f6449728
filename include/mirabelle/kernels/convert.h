#pragma once

#include "mirabelle/core/stream.h"
#include "mirabelle/core/tensor.h"

namespace mirabelle {

/// out = x rounded to the dtype of `out`, of which x has the wide dtype. Any shape, the same for
/// both. Throws Error if shapes, dtypes or devices disagree.
void round_to(const TensorView& out, const TensorView& x, const Stream& stream);

namespace backend {
template <Device D, typename T>
void round_to(T* out, const Wide<T>* x, int64_t n, const Stream& stream);
}  // namespace backend

}  // namespace mirabelle
