#pragma once

#include "mirabelle/core/stream.h"
#include "mirabelle/core/tensor.h"

namespace mirabelle {

// Tokens of semantic IDs: level l of num_levels has the tokens [bounds[l], bounds[l + 1]). Others,
// negative ones too, are of no level.
//
//   tokens  [n] int32
//   bounds  [num_levels + 1] int32, ascending, num_levels >= 1

/// out [n] = the weight of each token's level, 1 where it has none. weights [num_levels] float64.
void gather_level_weights(const TensorView& out, const TensorView& tokens, const TensorView& bounds,
                          const TensorView& weights, const Stream& stream);

/// sums [num_levels] float64 += the sums of x [n] over the tokens of each level, in float64, in an
/// order that depends on n only.
void add_level_sums(const TensorView& sums, const TensorView& x, const TensorView& tokens,
                    const TensorView& bounds, const Stream& stream);

namespace backend {
template <Device D, typename T>
void gather_level_weights(T* out, const int32_t* tokens, int64_t n, const int32_t* bounds,
                          int64_t num_levels, const double* weights, const Stream& stream);
template <Device D, typename T>
void add_level_sums(double* sums, const T* x, const int32_t* tokens, int64_t n,
                    const int32_t* bounds, int64_t num_levels, const Stream& stream);
}  // namespace backend

}  // namespace mirabelle
