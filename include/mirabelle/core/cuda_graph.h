#pragma once

#include <functional>

#include "mirabelle/core/stream.h"
#include "mirabelle/core/unique_handle.h"

struct CUgraphExec_st;

namespace mirabelle {

/// Work on a GPU that was recorded once and is launched as a whole, many times. All memory that it
/// touches must stay where it is.
class CudaGraph {
 public:
  /// Records what `work` enqueues on `stream`, without running it. The same work must have run on
  /// the stream before, so that libraries have chosen their algorithms and workspaces have their
  /// size. `work` may not wait for the GPU nor allocate on it. Throws what `work` throws.
  CudaGraph(const Stream& stream, const std::function<void()>& work);

  /// Enqueues the recorded work.
  void launch(const Stream& stream) const;

 private:
  static void destroy(CUgraphExec_st* graph);
  UniqueHandle<CUgraphExec_st*, &CudaGraph::destroy> graph_;
};

}  // namespace mirabelle
