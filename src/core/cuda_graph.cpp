#include "mirabelle/core/cuda_graph.h"

#include "mirabelle/core/error.h"

#ifdef MIRABELLE_CUDA
#include "mirabelle/core/cuda_check.h"
#endif

namespace mirabelle {

#ifdef MIRABELLE_CUDA
namespace {

void destroy_recording(cudaGraph_t graph) { cudaGraphDestroy(graph); }
using Recording = UniqueHandle<cudaGraph_t, destroy_recording>;

/// Ends a capture even if what is captured throws.
class Capture {
 public:
  explicit Capture(const Stream& stream) : stream_(stream) {
    // Other threads (NCCL's, MPI's) may call CUDA meanwhile.
    CUDA_CHECK(cudaStreamBeginCapture(stream.cuda(), cudaStreamCaptureModeThreadLocal));
  }
  ~Capture() {
    if (!ended_) Recording(end(nullptr));
  }
  Recording finish() {
    cudaError_t status = cudaSuccess;
    Recording recording(end(&status));
    CUDA_CHECK(status);
    return recording;
  }

 private:
  cudaGraph_t end(cudaError_t* status) {
    ended_ = true;
    cudaGraph_t graph = nullptr;
    const cudaError_t result = cudaStreamEndCapture(stream_.cuda(), &graph);
    if (status) *status = result;
    return graph;
  }

  const Stream& stream_;
  bool ended_ = false;
};

}  // namespace

CudaGraph::CudaGraph(const Stream& stream, const std::function<void()>& work) {
  Capture capture(stream);
  work();
  const Recording recording = capture.finish();
  cudaGraphExec_t executable = nullptr;
  CUDA_CHECK(cudaGraphInstantiate(&executable, recording.get(), 0));
  graph_ = UniqueHandle<CUgraphExec_st*, &CudaGraph::destroy>(executable);
}

void CudaGraph::launch(const Stream& stream) const {
  CUDA_CHECK(cudaGraphLaunch(graph_.get(), stream.cuda()));
}

void CudaGraph::destroy(CUgraphExec_st* graph) { cudaGraphExecDestroy(graph); }

#else

CudaGraph::CudaGraph(const Stream&, const std::function<void()>&) {
  throw_error(ErrorKind::kOther, "this build has no cuda backend");
}
void CudaGraph::launch(const Stream&) const {}
void CudaGraph::destroy(CUgraphExec_st*) {}

#endif

}  // namespace mirabelle
