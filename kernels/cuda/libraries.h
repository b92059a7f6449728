#pragma once

#include <cublasLt.h>
#include <cudnn.h>

#include <cstdint>
#include <map>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "cuda/attention_cudnn_graph.h"
#include "mirabelle/core/buffer.h"
#include "mirabelle/core/stream.h"

namespace mirabelle::backend {

void destroy_cublaslt(cublasLtHandle_t handle);
void destroy_cudnn(cudnnHandle_t handle);

/// What the CUDA backend keeps with a stream. Made and grown by first uses, so a step allocates
/// nothing once its shapes were seen; a CUDA graph must be captured after such a step.
class CudaLibraries {
 public:
  CudaLibraries();

  cublasLtHandle_t cublaslt() const { return cublaslt_.get(); }

  /// The algorithm for a matrix product, chosen once per key.
  using MatmulKey = std::tuple<int, int, bool, bool, bool, int64_t, int64_t, int64_t, int64_t, int>;
  std::map<MatmulKey, cublasLtMatmulAlgo_t> matmul_algorithms;

  /// Bound to the stream; made by the first call, which throws if cuDNN cannot be loaded.
  cudnnHandle_t cudnn(const Stream& stream);

  /// What cuDNN made of the graphs that were asked for; null if it refused.
  using AttentionPlans =
      std::map<std::pair<AttentionPass, AttentionShape>, std::unique_ptr<CudnnPlan>>;
  AttentionPlans& attention_plans() { return attention_plans_; }

  /// Scratch memory for one kernel call, in stream order; what it held before is lost.
  void* workspace(int64_t bytes);

 private:
  UniqueHandle<cublasLtHandle_t, destroy_cublaslt> cublaslt_;
  UniqueHandle<cudnnHandle_t, destroy_cudnn> cudnn_;
  AttentionPlans attention_plans_;
  std::vector<Buffer> workspaces_;  // the last is in use; recorded graphs may know the others
};

/// Those of this stream.
CudaLibraries& libraries_of(const Stream& stream);

}  // namespace mirabelle::backend
