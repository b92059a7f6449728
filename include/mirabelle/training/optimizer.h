#pragma once

#include "mirabelle/core/buffer.h"
#include "mirabelle/core/stream.h"
#include "mirabelle/model/parameters.h"
#include "mirabelle/training/train_config.h"

namespace mirabelle {

/// AdamW over the flat parameters: matrices are decayed, norms are not. Weights of bfloat16 are the
/// rounded copy of float32 master weights.
class Optimizer {
 public:
  Optimizer(const ParameterLayout& layout, const TrainingConfig& config, DType dtype,
            Device device);

  /// What an optimizer of so many parameters of this dtype allocates.
  static int64_t bytes(int64_t num_parameters, DType dtype) {
    const int64_t copies = wide(dtype) == dtype ? 2 : 3;  // two moments, and master weights
    return copies * num_parameters * size_in_bytes(wide(dtype));
  }

  /// Sets the weights to these, [num_parameters] of the wide dtype on the host.
  void set_weights(const TensorView& weights, const TensorView& values, const Stream& stream);
  /// Rounds the master weights to `weights`, after somebody wrote them.
  void round_weights(const TensorView& weights, const Stream& stream);

  /// Update number `step` (from 0): clips the gradients to max_grad_norm by their global norm, and
  /// moves the weights. Only enqueues work.
  void update(const TensorView& weights, const TensorView& gradients, int64_t step,
              double learning_rate, const Stream& stream);

  /// The weights in the wide dtype: what is updated, and stored in checkpoints.
  const TensorView& master(const TensorView& weights) const {
    return master_.view() ? master_.view() : weights;
  }
  /// [1] float64 on the device: of the gradients of the last update, before clipping.
  const TensorView& grad_squares() const { return grad_squares_.view(); }
  const TensorView& exp_avg() const { return exp_avg_.view(); }        ///< flat, as the weights
  const TensorView& exp_avg_sq() const { return exp_avg_sq_.view(); }  ///< flat, as the weights

 private:
  int64_t num_decayed_;
  TrainingConfig config_;
  Buffer master_;  // unless the weights are wide themselves
  Buffer exp_avg_, exp_avg_sq_;
  Buffer grad_squares_;  // [1] float64
};

}  // namespace mirabelle
