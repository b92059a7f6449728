#pragma once

#include "mirabelle/core/stream.h"
#include "mirabelle/core/tensor.h"
#include "mirabelle/kernels/dropout.h"

namespace mirabelle {

/// The joint between two transformer sublayers in one pass: adds a branch to the residual stream
/// and normalises the sum by its root mean square (Zhang & Sennrich 2019, eq. 4).
///
///   residual_out = residual + dropout(branch)
///   rstd         = 1 / sqrt(mean(residual_out^2) + epsilon)
///   out          = residual_out * rstd * weight
///
///   out, residual_out, residual, branch  [num_tokens, hidden_size]
///   rstd    [num_tokens], wide dtype, kept for the backward pass
///   weight  [hidden_size]
///
/// residual_out may be residual. branch may be absent: then residual_out is not written (and may be
/// absent too) and the residual itself is normalised. Enqueues on `stream` and returns. Throws
/// Error if shapes, dtypes or devices disagree.
void residual_rms_norm_forward(const TensorView& out, const TensorView& residual_out,
                               const TensorView& rstd, const TensorView& residual,
                               const TensorView& branch, const TensorView& weight, double epsilon,
                               const Dropout& dropout, const Stream& stream);

/// Gradients of the above. On entry grad_residual is the gradient of residual_out that comes from
/// later layers; on return it is the gradient of `residual`:
///
///   grad_residual += gradient of the norm with respect to residual_out
///   grad_branch    = dropout mask applied to that sum         (overwritten; absent if no branch
///   was) grad_weight   += sum over tokens of grad_out * residual_out * rstd
///
/// grad_branch may not alias grad_residual. grad_weight and workspace have the wide dtype. The sum
/// over tokens has a fixed order that depends on num_tokens only.
///   workspace  [num_token_chunks(num_tokens), hidden_size], overwritten
void residual_rms_norm_backward(const TensorView& grad_residual, const TensorView& grad_branch,
                                const TensorView& grad_weight, const TensorView& grad_out,
                                const TensorView& residual_out, const TensorView& rstd,
                                const TensorView& weight, const Dropout& dropout,
                                const TensorView& workspace, const Stream& stream);

/// In how many parts sums over tokens are taken: depends on nothing but the number of tokens.
int64_t num_token_chunks(int64_t num_tokens);

namespace backend {
struct DropoutArguments;  // kernels/dropout_arguments.h

template <Device D, typename T>
void residual_rms_norm_forward(T* out, T* residual_out, Wide<T>* rstd, const T* residual,
                               const T* branch, const T* weight, int64_t num_tokens,
                               int64_t hidden_size, double epsilon, const DropoutArguments& dropout,
                               const Stream& stream);
template <Device D, typename T>
void residual_rms_norm_backward(T* grad_residual, T* grad_branch, Wide<T>* grad_weight,
                                const T* grad_out, const T* residual_out, const Wide<T>* rstd,
                                const T* weight, int64_t num_tokens, int64_t hidden_size,
                                int64_t num_chunks, const DropoutArguments& dropout,
                                Wide<T>* workspace, const Stream& stream);
}  // namespace backend

}  // namespace mirabelle
