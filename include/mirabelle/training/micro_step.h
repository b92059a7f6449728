#pragma once

#include <map>
#include <optional>
#include <tuple>

#include "mirabelle/core/cuda_graph.h"
#include "mirabelle/model/transformer.h"

namespace mirabelle {

/// Forward and backward passes of micro-batches. On a GPU the second pass of a shape is recorded,
/// and from then on a micro-batch is one launch in the place of hundreds.
class MicroStep {
 public:
  /// `model` must outlive this. use_graph: false launches every kernel by itself, as does the CPU.
  MicroStep(Transformer& model, bool use_graph) : model_(model), use_graph_(use_graph) {}

  /// Transformer::forward_backward(). A pass with hooks is never a graph, nor is one of a model
  /// that is split over ranks: collectives run beside it, kernel by kernel.
  void run(const PackedBatch& batch, const PassHooks& hooks, const Stream& stream);

 private:
  using Key = std::tuple<const void*, int64_t, int64_t>;  // where the batch is; tokens, sequences
  Transformer& model_;
  bool use_graph_;
  std::map<Key, std::optional<CudaGraph>> graphs_;  // no graph yet: the shape ran once
};

}  // namespace mirabelle
