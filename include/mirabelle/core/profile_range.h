#pragma once

#ifdef MIRABELLE_CUDA
#include <nvtx3/nvToolsExt.h>
#endif

namespace mirabelle {

/// Names what this thread does until the end of the scope, in NVIDIA's profilers (NVTX). Costs next
/// to nothing where none is attached, and nothing in builds without CUDA.
class ProfileRange {
 public:
#ifdef MIRABELLE_CUDA
  explicit ProfileRange(const char* name) { nvtxRangePushA(name); }
  ~ProfileRange() { nvtxRangePop(); }
#else
  explicit ProfileRange(const char*) {}
#endif
  ProfileRange(const ProfileRange&) = delete;
  ProfileRange& operator=(const ProfileRange&) = delete;
};

}  // namespace mirabelle
