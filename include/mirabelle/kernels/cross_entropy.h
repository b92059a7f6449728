#pragma once

#include "mirabelle/core/stream.h"
#include "mirabelle/core/tensor.h"
#include "mirabelle/kernels/matmul.h"  // Accumulate

namespace mirabelle {

/// What gradients are taken of, where that is not the sum of the losses. With s = label_smoothing
/// a row's gradient is that of
///   row_weights * cross entropy of the distribution (1 - s) one_hot(target) + s uniform(level)
/// (Szegedy et al. 2016, section 7), where `uniform` is over the tokens of the target's level
/// (token_levels.h) alone: no others ever stand there. A target of no level is not smoothed. The
/// losses that are returned are without weights and smoothing, so that they compare.
struct CrossEntropyOptions {
  TensorView row_weights;      ///< [num_tokens], wide dtype; absent: 1
  double label_smoothing = 0;  ///< in [0, 1)
  TensorView level_bounds;     ///< [num_levels + 1] int32; read only if label_smoothing > 0
};

/// Softmax cross entropy whose gradient replaces the logits; with default options
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
                           const CrossEntropyOptions& options, const Stream& stream);

// The same for a vocabulary that is cut into shards, each with the logits of the tokens
// [first_token, first_token + shard_size), shard_size >= 0. The caller takes the maximum over
// ranks, then adds up the shards' sums:
//
//   largest  [num_tokens], wide dtype
//   sums     [2, num_tokens], wide dtype: the sum of exp(logit - largest); the target's
//            logit - largest
//   logits   [num_tokens, shard_size]
//   targets  [num_tokens] int32, tokens of the whole vocabulary, which the caller checks

/// largest = each row's largest logit of this shard, -infinity if it has none; or the larger of
/// that and what `largest` was.
void shard_maximum(const TensorView& largest, const TensorView& logits, Accumulate accumulate,
                   const Stream& stream);

/// sums of this shard, overwritten, from `largest` of the whole vocabulary. The second is 0 where
/// the target is in another shard or negative.
void shard_sums(const TensorView& sums, const TensorView& logits, const TensorView& largest,
                const TensorView& targets, int64_t first_token, const Stream& stream);

/// With `largest` and `sums` of the whole vocabulary, and default options,
///   loss   = log(sums[0]) - sums[1]
///   logits = grad_scale * (exp(logits - largest) / sums[0] - one_hot(target))
/// and 0 both where the target is negative. `loss` and grad_scale as above.
void shard_gradient(const TensorView& loss, const TensorView& logits, const TensorView& largest,
                    const TensorView& sums, const TensorView& targets, int64_t first_token,
                    const TensorView& grad_scale, const CrossEntropyOptions& options,
                    const Stream& stream);

/// logits [num_rows, vocab_size] = log softmax(logits), in place.
void log_softmax(const TensorView& logits, const Stream& stream);

namespace backend {
/// CrossEntropyOptions; T is the wide dtype.
template <typename T>
struct RowOptions {
  const T* weights;  ///< may be null
  const int32_t* level_bounds;
  int64_t num_levels;  ///< 0 without smoothing
  T label_smoothing;
};

template <Device D, typename T>
void softmax_cross_entropy(Wide<T>* loss, T* logits, const int32_t* targets, int64_t num_tokens,
                           int64_t vocab_size, const double* grad_scale,
                           const RowOptions<Wide<T>>& options, const Stream& stream);
template <Device D, typename T>
void shard_maximum(Wide<T>* largest, const T* logits, bool accumulate, int64_t num_tokens,
                   int64_t shard_size, const Stream& stream);
template <Device D, typename T>
void shard_sums(Wide<T>* sums, const T* logits, const Wide<T>* largest, const int32_t* targets,
                int64_t num_tokens, int64_t shard_size, int64_t first_token, const Stream& stream);
template <Device D, typename T>
void shard_gradient(Wide<T>* loss, T* logits, const Wide<T>* largest, const Wide<T>* sums,
                    const int32_t* targets, int64_t num_tokens, int64_t shard_size,
                    int64_t first_token, const double* grad_scale,
                    const RowOptions<Wide<T>>& options, const Stream& stream);
template <Device D, typename T>
void log_softmax(T* logits, int64_t num_rows, int64_t vocab_size, const Stream& stream);
}  // namespace backend

}  // namespace mirabelle
