#include "cuda/libraries.h"

namespace mirabelle::backend {

void* CudaLibraries::workspace(int64_t bytes) {
  if (workspaces_.empty() || bytes > workspaces_.back().bytes()) {
    workspaces_.emplace_back(bytes, Device::kCuda);
  }
  return workspaces_.back().data();
}

CudaLibraries& libraries_of(const Stream& stream) {
  if (!stream.attachment()) stream.attachment() = std::make_shared<CudaLibraries>();
  return *static_cast<CudaLibraries*>(stream.attachment().get());
}

}  // namespace mirabelle::backend
