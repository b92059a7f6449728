#include "mirabelle/kernels/cross_entropy.h"

#include "check_operand.h"
#include "mirabelle/core/dispatch.h"

namespace mirabelle {

void softmax_cross_entropy(const TensorView& loss, const TensorView& logits,
                           const TensorView& targets, const TensorView& grad_scale,
                           const Stream& stream) {
  MIRABELLE_CHECK(logits.shape.rank() == 2, "logits have shape ", logits.shape,
                  ", wanted [num_tokens, vocab_size]");
  const int64_t num_tokens = logits.shape[0], vocab_size = logits.shape[1];
  check_wide("loss", loss, {num_tokens}, logits);
  check_indices("targets", targets, {num_tokens}, logits);
  MIRABELLE_CHECK(grad_scale.shape == Shape{1} && grad_scale.device == logits.device,
                  "grad_scale has shape ", grad_scale.shape, " on ", to_string(grad_scale.device),
                  ", wanted [1] on ", to_string(logits.device));
  dispatch(logits.device, logits.dtype, [&]<Device D, typename T>() {
    backend::softmax_cross_entropy<D, T>(loss.as<Wide<T>>(), logits.as<T>(), targets.as<int32_t>(),
                                         num_tokens, vocab_size, grad_scale.as<double>(), stream);
  });
}

void log_softmax(const TensorView& logits, const Stream& stream) {
  MIRABELLE_CHECK(logits.shape.rank() == 2, "logits have shape ", logits.shape,
                  ", wanted [num_rows, vocab_size]");
  dispatch(logits.device, logits.dtype, [&]<Device D, typename T>() {
    backend::log_softmax<D, T>(logits.as<T>(), logits.shape[0], logits.shape[1], stream);
  });
}

}  // namespace mirabelle
