#pragma once

#include <limits>

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
  double max_grad_norm =
      std::numeric_limits<double>::infinity();  ///< gradients are scaled down to it
  double max_good_norm =
      std::numeric_limits<double>::max();  ///< of gradients with more, or NaN, nothing comes
  int64_t step = 1;                        ///< counts from 1, for the bias correction
};

/// One update of a flat range; all tensors [n]. If sqrt(grad_squares) is not a number up to
/// max_good_norm nothing is changed.
///   g = grad * min(1, max_grad_norm / sqrt(grad_squares))
///   m = beta1 m + (1 - beta1) g;   v = beta2 v + (1 - beta2) g^2
///   parameter -= learning_rate * (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + epsilon)
///                                 + weight_decay * parameter)
///
///   parameter              any floating dtype
///   master                 the parameter in its wide dtype, which is then what is updated, and the
///                          parameter its rounded copy; absent if the parameter is wide itself
///   exp_avg, exp_avg_sq, grad  the wide dtype
///   grad_squares           [1] float64: the sum of squares of the whole gradient; absent: no
///                          clipping, and every gradient is good
void adamw_update(const TensorView& parameter, const TensorView& master, const TensorView& exp_avg,
                  const TensorView& exp_avg_sq, const TensorView& grad,
                  const TensorView& grad_squares, const AdamWStep& step, const Stream& stream);

namespace backend {
template <Device D, typename T>
void adamw_update(T* parameter, Wide<T>* master, Wide<T>* exp_avg, Wide<T>* exp_avg_sq,
                  const Wide<T>* grad, const double* grad_squares, int64_t n, const AdamWStep& step,
                  const Stream& stream);
}  // namespace backend

}  // namespace mirabelle
