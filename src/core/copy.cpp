#include "mirabelle/core/copy.h"

#include <cstring>

#ifdef MIRABELLE_CUDA
#include "mirabelle/core/cuda_check.h"
#endif

namespace mirabelle {

void copy(const TensorView& to, const TensorView& from, [[maybe_unused]] const Stream& stream) {
  MIRABELLE_CHECK(to.shape == from.shape && to.dtype == from.dtype, "a copy of ",
                  to_string(from.dtype), " ", from.shape, " to ", to_string(to.dtype), " ",
                  to.shape);
  if (to.empty()) return;
  if (to.device == Device::kCpu && from.device == Device::kCpu) {
    std::memmove(to.data, from.data, to.bytes());
    return;
  }
#ifdef MIRABELLE_CUDA
  MIRABELLE_CHECK(stream.device() == Device::kCuda, "a copy from or to a GPU on a CPU stream");
  CUDA_CHECK(cudaMemcpyAsync(to.data, from.data, to.bytes(), cudaMemcpyDefault, stream.cuda()));
#else
  throw_error(ErrorKind::kOther, "this build has no cuda backend");
#endif
}

TensorView on_host(const TensorView& x, Buffer& memory, const Stream& stream) {
  if (x.device == Device::kCpu) return x;
  if (memory.bytes() < x.bytes()) memory = Buffer(x.bytes(), Device::kCpu);
  const TensorView result = {memory.data(), x.shape, x.dtype, Device::kCpu};
  copy(result, x, stream);
  stream.synchronize();
  return result;
}

}  // namespace mirabelle
