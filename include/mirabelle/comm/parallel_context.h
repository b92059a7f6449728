#pragma once

#include <memory>

#include "mirabelle/comm/communicator.h"

namespace mirabelle {

/// The groups of a training job. Neighbouring ranks share one copy of the model:
///   rank = data_parallel_rank * tensor_parallel_size + tensor_parallel_rank.
class ParallelContext {
 public:
  /// Throws a kUsage Error unless tensor_parallel_size divides the world's size. Collective;
  /// `world` must outlive it.
  ParallelContext(const Communicator& world, int64_t tensor_parallel_size);

  const Communicator& world() const { return world_; }
  /// The ranks that share this rank's copy of the model.
  const Communicator& tensor() const { return *tensor_; }
  /// The ranks that hold the same part of the model, each of its own copy.
  const Communicator& data() const { return *data_; }

 private:
  const Communicator& world_;
  std::unique_ptr<Communicator> tensor_, data_;
};

}  // namespace mirabelle
