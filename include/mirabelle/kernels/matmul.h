#pragma once

#include "mirabelle/core/stream.h"
#include "mirabelle/core/tensor.h"

namespace mirabelle {

/// Matrix products of row-major matrices. Weights are stored [out_features, in_features].
enum class Accumulate { kNo, kYes };  ///< overwrite `out`, or add to it

/// out [m, n] = op(a) op(b), with op the transpose where asked; op(a) is [m, k], op(b) is [k, n].
/// `out` has the dtype of a and b, or their wide dtype. No operand may alias `out`. k = 0 gives
/// zeros. Throws Error if shapes, dtypes or devices disagree.
void matmul(const TensorView& out, const TensorView& a, bool transpose_a, const TensorView& b,
            bool transpose_b, Accumulate accumulate, const Stream& stream);

/// The same for each of `count` matrices: out [count, m, n], and a and b with three axes too.
void batched_matmul(const TensorView& out, const TensorView& a, bool transpose_a,
                    const TensorView& b, bool transpose_b, Accumulate accumulate,
                    const Stream& stream);

/// out [num_tokens, out_features] = x [num_tokens, in_features] weight^T.
void linear_forward(const TensorView& out, const TensorView& x, const TensorView& weight,
                    const Stream& stream);
/// grad_x [num_tokens, in_features] = grad_out weight  (or += it).
void linear_backward_input(const TensorView& grad_x, const TensorView& grad_out,
                           const TensorView& weight, Accumulate accumulate, const Stream& stream);
/// grad_weight += grad_out^T x. grad_weight has the wide dtype.
void linear_backward_weight(const TensorView& grad_weight, const TensorView& grad_out,
                            const TensorView& x, const Stream& stream);

namespace backend {
template <Device D, typename T, typename Out = T>
void matmul(Out* out, const T* a, bool transpose_a, const T* b, bool transpose_b, bool accumulate,
            int64_t count, int64_t m, int64_t n, int64_t k, const Stream& stream);
}  // namespace backend

}  // namespace mirabelle
