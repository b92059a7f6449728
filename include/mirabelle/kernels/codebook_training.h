#pragma once

#include "mirabelle/core/stream.h"
#include "mirabelle/core/tensor.h"

namespace mirabelle {

// What the training of codebooks takes beside nearest_code.h. float32, and float64 on the CPU.
//
//   residuals  [num_levels + 1, n, codebook_dim]: the latent of an item, and what its code of one
//              level after the other leaves of it
//   codes      [n] int32, of one level

/// out[i] = residuals[0][i] - residuals[num_kept[i]][i]: the sum of an item's first codes.
///   out       [n, codebook_dim]
///   num_kept  [n] int32, from 0 to num_levels (or Error, where the host can read them)
void sum_kept_codes(const TensorView& out, const TensorView& residuals, const TensorView& num_kept,
                    const Stream& stream);

/// The gradient through quantization by the rotation trick (Fifty et al. 2024, "Restructuring
/// vector quantization with the rotation trick", section 4): quantized = (|quantized| / |z|) R z,
/// where R rotates z towards it, and R and the ratio are constants. So
///   grad_z[i] = (|quantized| / |z|) R^T grad_quantized[i]
/// Where R is not defined (one of both is 0, or they are opposite) grad_z = grad_quantized.
///   grad_z, grad_quantized, z, quantized  [n, codebook_dim]; the first two may be the same
void rotation_backward(const TensorView& grad_z, const TensorView& grad_quantized,
                       const TensorView& z, const TensorView& quantized, const Stream& stream);

/// counts [codebook_size] int64 += how many of `codes` are each. Throws if a code is not below
/// codebook_size (where the host can read it).
void count_codes(const TensorView& counts, const TensorView& codes, const Stream& stream);

/// One step of codebook rows towards the exponential moving average of what is assigned to them
/// (van den Oord et al. 2017, appendix A.1):
///   ema_counts  = decay * ema_counts + (1 - decay) * counts
///   codebook[k] -= (1 - decay) / ema_counts[k] * grad[k]        where counts[k] > 0
/// with grad[k] = the sum over the batch's items of code k of (codebook[k] - residual).
///   codebook, grad  [codebook_size, codebook_dim]
///   ema_counts      [codebook_size], of their dtype
///   counts          [codebook_size] int64
void ema_codebook_update(const TensorView& codebook, const TensorView& ema_counts,
                         const TensorView& grad, const TensorView& counts, double decay,
                         const Stream& stream);

namespace backend {
template <Device D, typename T>
void sum_kept_codes(T* out, const T* residuals, const int32_t* num_kept, int64_t num_levels,
                    int64_t n, int64_t codebook_dim, const Stream& stream);
template <Device D, typename T>
void rotation_backward(T* grad_z, const T* grad_quantized, const T* z, const T* quantized,
                       int64_t n, int64_t codebook_dim, const Stream& stream);
template <Device D>
void count_codes(int64_t* counts, const int32_t* codes, int64_t n, int64_t codebook_size,
                 const Stream& stream);
template <Device D, typename T>
void ema_codebook_update(T* codebook, T* ema_counts, const T* grad, const int64_t* counts,
                         int64_t codebook_size, int64_t codebook_dim, double decay,
                         const Stream& stream);
}  // namespace backend

}  // namespace mirabelle
