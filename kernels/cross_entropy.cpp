#include "mirabelle/kernels/cross_entropy.h"

#include "check_levels.h"
#include "check_operand.h"
#include "mirabelle/core/dispatch.h"

namespace mirabelle {
namespace {

void check_logits(const TensorView& logits) {
  MIRABELLE_CHECK(logits.shape.rank() == 2, "logits have shape ", logits.shape,
                  ", wanted [num_tokens, vocab_size]");
  check_operand("logits", logits, logits.shape, logits);
}

void check_scale(const TensorView& grad_scale, const TensorView& logits) {
  MIRABELLE_CHECK(grad_scale.shape == Shape{1} && grad_scale.device == logits.device,
                  "grad_scale has shape ", grad_scale.shape, " on ", to_string(grad_scale.device),
                  ", wanted [1] on ", to_string(logits.device));
}

void check_options(const CrossEntropyOptions& options, const TensorView& logits) {
  if (options.row_weights) {
    check_wide("row_weights", options.row_weights, {logits.shape[0]}, logits);
  }
  const double s = options.label_smoothing;
  MIRABELLE_CHECK(0 <= s && s < 1, "label_smoothing is ", s, ", wanted from 0 to below 1");
  if (s > 0) check_level_bounds(options.level_bounds, logits);
}

template <typename T>
backend::RowOptions<T> row_options(const CrossEntropyOptions& options) {
  const bool smooths = options.label_smoothing > 0;
  return {.weights = options.row_weights ? options.row_weights.as<T>() : nullptr,
          .level_bounds = smooths ? options.level_bounds.as<int32_t>() : nullptr,
          .num_levels = smooths ? options.level_bounds.shape[0] - 1 : 0,
          .label_smoothing = static_cast<T>(options.label_smoothing)};
}

}  // namespace

void softmax_cross_entropy(const TensorView& loss, const TensorView& logits,
                           const TensorView& targets, const TensorView& grad_scale,
                           const CrossEntropyOptions& options, const Stream& stream) {
  check_logits(logits);
  const int64_t num_tokens = logits.shape[0], vocab_size = logits.shape[1];
  check_wide("loss", loss, {num_tokens}, logits);
  check_indices("targets", targets, {num_tokens}, logits);
  check_scale(grad_scale, logits);
  check_options(options, logits);
  dispatch(logits.device, logits.dtype, [&]<Device D, typename T>() {
    backend::softmax_cross_entropy<D, T>(loss.as<Wide<T>>(), logits.as<T>(), targets.as<int32_t>(),
                                         num_tokens, vocab_size, grad_scale.as<double>(),
                                         row_options<Wide<T>>(options), stream);
  });
}

void shard_maximum(const TensorView& largest, const TensorView& logits, Accumulate accumulate,
                   const Stream& stream) {
  check_logits(logits);
  const int64_t num_tokens = logits.shape[0], shard_size = logits.shape[1];
  check_wide("largest", largest, {num_tokens}, logits);
  dispatch(logits.device, logits.dtype, [&]<Device D, typename T>() {
    backend::shard_maximum<D, T>(largest.as<Wide<T>>(), logits.as<T>(),
                                 accumulate == Accumulate::kYes, num_tokens, shard_size, stream);
  });
}

void shard_sums(const TensorView& sums, const TensorView& logits, const TensorView& largest,
                const TensorView& targets, int64_t first_token, const Stream& stream) {
  check_logits(logits);
  const int64_t num_tokens = logits.shape[0], shard_size = logits.shape[1];
  check_wide("sums", sums, {2, num_tokens}, logits);
  check_wide("largest", largest, {num_tokens}, logits);
  check_indices("targets", targets, {num_tokens}, logits);
  dispatch(logits.device, logits.dtype, [&]<Device D, typename T>() {
    backend::shard_sums<D, T>(sums.as<Wide<T>>(), logits.as<T>(), largest.as<Wide<T>>(),
                              targets.as<int32_t>(), num_tokens, shard_size, first_token, stream);
  });
}

void shard_gradient(const TensorView& loss, const TensorView& logits, const TensorView& largest,
                    const TensorView& sums, const TensorView& targets, int64_t first_token,
                    const TensorView& grad_scale, const CrossEntropyOptions& options,
                    const Stream& stream) {
  check_logits(logits);
  const int64_t num_tokens = logits.shape[0], shard_size = logits.shape[1];
  check_wide("loss", loss, {num_tokens}, logits);
  check_wide("largest", largest, {num_tokens}, logits);
  check_wide("sums", sums, {2, num_tokens}, logits);
  check_indices("targets", targets, {num_tokens}, logits);
  check_scale(grad_scale, logits);
  check_options(options, logits);
  dispatch(logits.device, logits.dtype, [&]<Device D, typename T>() {
    backend::shard_gradient<D, T>(loss.as<Wide<T>>(), logits.as<T>(), largest.as<Wide<T>>(),
                                  sums.as<Wide<T>>(), targets.as<int32_t>(), num_tokens, shard_size,
                                  first_token, grad_scale.as<double>(),
                                  row_options<Wide<T>>(options), stream);
  });
}

void log_softmax(const TensorView& logits, const Stream& stream) {
  check_logits(logits);
  dispatch(logits.device, logits.dtype, [&]<Device D, typename T>() {
    backend::log_softmax<D, T>(logits.as<T>(), logits.shape[0], logits.shape[1], stream);
  });
}

}  // namespace mirabelle
