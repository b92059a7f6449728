#pragma once

#include "mirabelle/core/stream.h"
#include "mirabelle/core/tensor.h"

namespace mirabelle {

/// The scalars of one AdamW step (Loshchilov & Hutter 2019).
struct AdamWStep {
  double learning_rate = 0;
  double beta1 = 0.9;
  double beta2 = 0.98;
  double epsilon = 1e-8;
  double weight_decay = 0;
  double grad_scale = 1;  ///< multiplies every gradient first (clipping)
  int64_t step = 1;       ///< counts from 1, for the bias correction
};

/// One update of a flat range, all tensors [n] of one floating dtype:
///   g = grad_scale * grad
///   m = beta1 m + (1 - beta1) g;   v = beta2 v + (1 - beta2) g^2
///   parameter -= learning_rate * (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + epsilon)
///                                 + weight_decay * parameter)
void adamw_update(const TensorView& parameter, const TensorView& exp_avg,
                  const TensorView& exp_avg_sq, const TensorView& grad, const AdamWStep& step,
                  const Stream& stream);

namespace backend {
template <Device D, typename T>
void adamw_update(T* parameter, T* exp_avg, T* exp_avg_sq, const T* grad, int64_t n,
                  const AdamWStep& step, const Stream& stream);
}  // namespace backend

}  // namespace mirabelle
