#pragma once

#include "mirabelle/core/stream.h"
#include "mirabelle/core/tensor.h"

namespace mirabelle {

/// SwiGLU (Shazeer 2020) on the result of one fused gate/up product.
///   out = silu(gate) * up,   silu(x) = x / (1 + exp(-x))
///
///   out      [num_tokens, num_blocks * block_size]
///   gate_up  [num_tokens, num_blocks, 2, block_size]: per block the gate, then the up projection
void swiglu_forward(const TensorView& out, const TensorView& gate_up, const Stream& stream);

/// grad_gate_up [like gate_up], overwritten, from grad_out [like out].
/// grad_gate_up may be gate_up itself.
void swiglu_backward(const TensorView& grad_gate_up, const TensorView& grad_out,
                     const TensorView& gate_up, const Stream& stream);

namespace backend {
template <Device D, typename T>
void swiglu_forward(T* out, const T* gate_up, int64_t num_tokens, int64_t num_blocks,
                    int64_t block_size, const Stream& stream);
template <Device D, typename T>
void swiglu_backward(T* grad_gate_up, const T* grad_out, const T* gate_up, int64_t num_tokens,
                     int64_t num_blocks, int64_t block_size, const Stream& stream);
}  // namespace backend

}  // namespace mirabelle
