#pragma once

#include <memory>
#include <vector>

#include "mirabelle/comm/communicator.h"
#include "mirabelle/training/flat_partition.h"

namespace mirabelle {

/// Brings the weights that data-parallel ranks have updated, each what it owns, to all of them
/// while the next step's forward pass begins.
class WeightGatherer {
 public:
  /// All references must outlive this; weights [partition.num_elements()].
  WeightGatherer(const TensorView& weights, const FlatPartition& partition,
                 const Communicator& data_parallel)
      : weights_(weights), partition_(partition), group_(data_parallel) {}

  /// Starts with what the forward pass needs first.
  void start(const Stream& stream);
  bool is_under_way() const { return !under_way_.empty(); }
  /// Later work on `stream` sees this region's weights.
  void wait_for(int64_t region, const Stream& stream);
  void finish(const Stream& stream);

 private:
  struct UnderWay {
    int64_t region;
    std::unique_ptr<PendingCollective> collective;
  };
  TensorView weights_;
  const FlatPartition& partition_;
  const Communicator& group_;
  std::vector<UnderWay> under_way_;
};

}  // namespace mirabelle
