#pragma once

#include "mirabelle/core/stream.h"
#include "mirabelle/core/tensor.h"

namespace mirabelle {

/// Softmax cross entropy whose gradient replaces the logits:
///   loss   = -log softmax(logits)[target]
///   logits = grad_scale * (softmax(logits) - one_hot(target))
/// A row whose target is negative has loss 0 and gradient 0.
///
///   loss     [num_tokens], wide dtype, overwritten
///   logits   [num_tokens, vocab_size], overwritten by their gradient
///   targets  [num_tokens] int32, below vocab_size (or Error, where the host can read them)
///   grad_scale  [1] float64: in memory, so that a recorded CUDA graph serves every step
void softmax_cross_entropy(const TensorView& loss, const TensorView& logits,
                           const TensorView& targets, const TensorView& grad_scale,
                           const Stream& stream);

/// logits [num_rows, vocab_size] = log softmax(logits), in place.
void log_softmax(const TensorView& logits, const Stream& stream);

namespace backend {
template <Device D, typename T>
void softmax_cross_entropy(Wide<T>* loss, T* logits, const int32_t* targets, int64_t num_tokens,
                           int64_t vocab_size, const double* grad_scale, const Stream& stream);
template <Device D, typename T>
void log_softmax(T* logits, int64_t num_rows, int64_t vocab_size, const Stream& stream);
}  // namespace backend

}  // namespace mirabelle
