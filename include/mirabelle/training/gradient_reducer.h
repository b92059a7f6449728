#pragma once

#include <memory>
#include <vector>

#include "mirabelle/comm/communicator.h"
#include "mirabelle/model/transformer.h"
#include "mirabelle/training/flat_partition.h"

namespace mirabelle {

/// Sums the gradients of a step: over this rank's parts of the global batch, and over the
/// data-parallel ranks while the backward pass still runs.
///
///   zero_stage 0  every rank gets the whole sum
///              1  every rank gets the sum of what it owns (Rajbhandari et al. 2020)
///              2  the same, and no rank ever holds a whole gradient: each part's is scattered, and
///                 a rank keeps the sum of what it owns
///
/// In the reproducible mode a part's gradient is computed by itself, and parts are added in one
/// binary tree: those of a rank, then over ranks. A rank with several parts then keeps
/// log2(parts) partial sums.
class GradientReducer {
 public:
  struct Options {
    int64_t zero_stage = 0;
    bool reproducible = false;
    int64_t parts_per_rank = 1;
  };
  /// All references must outlive this.
  GradientReducer(const Transformer& model, const FlatPartition& partition,
                  const Communicator& data_parallel, const Options& options);

  /// How the model must store its gradients.
  static GradientStorage storage(const Options& options, int64_t data_parallel_size);
  /// How often in a step a region is reduced over the data-parallel ranks.
  static int64_t num_reductions(const Options& options, int64_t data_parallel_size);
  /// Passes of a step that have gradient_final, if any pass has.
  static int64_t num_final_passes(const Options& options, int64_t data_parallel_size);
  /// What a reducer allocates.
  static int64_t bytes(const Options& options, const FlatPartition& partition, DType dtype);

  /// Before the first part of a step.
  void begin_step(const Stream& stream);
  /// What the pass of this rank's part number `part` must tell; empty if nothing. Refers to this
  /// and to the stream.
  PassHooks hooks(int64_t part, const Stream& stream);
  /// After the last part: waits for everything. Later work on `stream` sees the sums.
  void finish(const Stream& stream);

  const Communicator& data_parallel() const { return group_; }
  /// Whether ranks get only what they own.
  bool is_sharded() const { return options_.zero_stage > 0; }
  /// The finished sum of a bucket, or of this rank's piece of it if is_sharded().
  TensorView gradient(const Bucket& bucket) const;
  /// The whole sum, unless is_sharded().
  const TensorView& gradients() const { return model_.gradients(); }

 private:
  struct UnderWay {
    std::unique_ptr<PendingCollective> collective;
    TensorView memory;   // of the bucket
    TensorView reduced;  // within it: this rank's piece
    const Bucket* bucket;
  };
  void add_in_tree(int64_t region, const TensorView& gradient, int64_t part, const Stream& stream);
  void start(int64_t region, const TensorView& gradient, const Stream& stream);
  void complete(const UnderWay& bucket, const Stream& stream);
  void complete_in(const TensorView& memory, const Stream& stream);
  bool keeps_shard() const { return options_.zero_stage == 2; }

  const Transformer& model_;
  const FlatPartition& partition_;
  const Communicator& group_;
  Options options_;
  Buffer partial_sums_;  // [levels, num_elements]: of 1, 2, 4, .. parts
  Buffer shard_;         // [num_owned], if zero_stage is 2
  std::vector<UnderWay> under_way_;
};

}  // namespace mirabelle
