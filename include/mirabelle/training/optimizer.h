#pragma once

#include <vector>

#include "mirabelle/comm/communicator.h"
#include "mirabelle/core/buffer.h"
#include "mirabelle/core/stream.h"
#include "mirabelle/model/parameters.h"
#include "mirabelle/training/flat_partition.h"
#include "mirabelle/training/gradient_reducer.h"
#include "mirabelle/training/train_config.h"

namespace mirabelle {

/// AdamW over the flat parameters: matrices are decayed, norms are not. With training.optimizer:
/// muon the matrices of the layers follow Muon instead (kernels/muon.h), each by itself, as
/// ParameterLayout::layer_matrices has them. Weights of bfloat16 are the rounded copy of float32
/// master weights. A sharded optimizer has the state of what its rank owns and updates only that.
///
/// Muon's momentum is kept as exp_avg, and exp_avg_sq of what follows Muon stays 0. Momentum is
/// elementwise, so its owners compute it; of the layers in turn the directions are gathered, every
/// rank makes all of its share's matrices orthogonal, and takes from them what it updates.
class Optimizer {
 public:
  /// `everyone`: all ranks between whom the gradients that `reducer` leaves are divided, over whom
  /// their norm is summed; null if this rank has all. References must outlive this.
  Optimizer(const ParameterLayout& layout, const FlatPartition& partition,
            const GradientReducer& reducer, const TrainingConfig& config, DType dtype,
            Device device, const Communicator* everyone);

  /// What an optimizer that updates so many parameters of this dtype allocates.
  static int64_t bytes(const TrainingConfig& config, const ParameterLayout& layout,
                       int64_t num_updated, DType dtype);

  /// Sets all weights to these, [num_elements] of the wide dtype on the host.
  void set_weights(const TensorView& weights, const TensorView& values, const Stream& stream);

  /// Update number `step` (from 0) with the reducer's sums: clips them to max_grad_norm by their
  /// global norm, and moves the weights that this rank updates. If the norm is above max_good_norm
  /// or not finite, weights and moments stay as they are. Only enqueues work.
  void update(const TensorView& weights, int64_t step, double learning_rate, double max_good_norm,
              const Stream& stream);

  /// [1] float64 on the device: of the whole gradient of the last update, before clipping; every
  /// parameter counts once.
  const TensorView& grad_squares() const { return grad_squares_.view(); }

  /// What is stored of this rank's piece of a bucket, in the wide dtype.
  struct State {
    TensorView master, exp_avg, exp_avg_sq;
  };
  State state(const TensorView& weights, const Bucket& bucket) const;
  /// Takes all of it back from flat arrays on the host, [num_elements] of the wide dtype.
  void set_state(const TensorView& weights, const State& values, const Stream& stream);
  /// Forgets the moments.
  void reset(const Stream& stream);

 private:
  /// A contiguous range that this rank updates.
  struct Range {
    FlatRange flat;
    int64_t offset;  // in master_, exp_avg_ and exp_avg_sq_
    TensorView gradient;
  };
  /// What AdamW updates.
  struct AdamWRange {
    FlatRange flat;
    bool is_decayed;
  };
  void sum_squares(const Stream& stream);
  /// Calls body(begin, end, own, gradient) for the parts of `flat` that this rank updates, with
  /// own(array) that part of an array of what it owns.
  template <typename Body>
  void for_each_updated(const FlatRange& flat, Body body) const;
  void update_with_adamw(const TensorView& weights, int64_t step, double learning_rate,
                         double max_good_norm, const Stream& stream);
  void update_with_muon(const TensorView& weights, int64_t layer, double learning_rate,
                        double max_good_norm, const Stream& stream);

  const ParameterLayout& layout_;
  const FlatPartition& partition_;
  const GradientReducer& reducer_;
  TrainingConfig config_;
  const Communicator* everyone_;
  std::vector<AdamWRange> adamw_ranges_;
  std::vector<Range> ranges_;
  std::vector<TensorView> counted_gradients_;  // parts of the ranges' that make the norm
  Buffer master_;                              // unless the weights are wide themselves
  Buffer exp_avg_, exp_avg_sq_;
  Buffer directions_;     // of Muon: of a layer, and
  Buffer scratch_;        // what orthogonalise wants
  Buffer grad_squares_;   // [1] float64
  Buffer range_squares_;  // [counted ranges] float64
  Buffer largest_;        // [1] float64, and
  Buffer fixed_point_;    // [2] int64: of the reproducible norm
};

}  // namespace mirabelle
