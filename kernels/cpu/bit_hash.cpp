#include "mirabelle/kernels/bit_hash.h"

#include <bit>

#include "cpu/parallel_threshold.h"
#include "float_bits.h"
#include "mixed_bits.h"

namespace mirabelle::backend {

template <Device D, typename T>
void bit_hash(int64_t* out, const T* x, int64_t n, const Stream&) {
  using Bits = typename FloatBits<T>::type;
  uint64_t sum = 0;
#pragma omp parallel for simd schedule(static) reduction(+ : sum) if (n > kParallelThreshold)
  for (int64_t i = 0; i < n; ++i) sum += mixed_bits(std::bit_cast<Bits>(x[i]), i);
  *out = static_cast<int64_t>(sum);
}

#define INSTANTIATE(T) \
  template void bit_hash<Device::kCpu>(int64_t*, const T*, int64_t, const Stream&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
