#include "mirabelle/kernels/convert.h"

#include "cpu/parallel_threshold.h"

namespace mirabelle::backend {

template <Device D, typename T>
void round_to(T* out, const Wide<T>* x, int64_t n, const Stream&) {
#pragma omp parallel for simd schedule(static) if (n > kParallelThreshold)
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(x[i]);
}

#define INSTANTIATE(T) \
  template void round_to<Device::kCpu, T>(T*, const Wide<T>*, int64_t, const Stream&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
