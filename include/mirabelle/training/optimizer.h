#pragma once

#include "mirabelle/core/buffer.h"
#include "mirabelle/core/stream.h"
#include "mirabelle/model/parameters.h"
#include "mirabelle/training/train_config.h"

namespace mirabelle {

/// AdamW over the flat parameters: matrices are decayed, norms are not.
class Optimizer {
 public:
  Optimizer(const ParameterLayout& layout, const TrainingConfig& config, DType dtype,
            Device device);

  /// Update number `step` (from 0): clips the gradients to max_grad_norm by their global norm, and
  /// moves the weights. Returns the norm before clipping. Waits for the stream.
  double update(const TensorView& weights, const TensorView& gradients, int64_t step,
                double learning_rate, const Stream& stream);

  const TensorView& exp_avg() const { return exp_avg_.view(); }        ///< flat, as the weights
  const TensorView& exp_avg_sq() const { return exp_avg_sq_.view(); }  ///< flat, as the weights

 private:
  int64_t num_decayed_;
  TrainingConfig config_;
  Buffer exp_avg_, exp_avg_sq_;
};

}  // namespace mirabelle
