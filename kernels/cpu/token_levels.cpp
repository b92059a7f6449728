#include "mirabelle/kernels/token_levels.h"

#include "cpu/parallel_threshold.h"
#include "level_of.h"

namespace mirabelle::backend {

template <Device D, typename T>
void gather_level_weights(T* out, const int32_t* tokens, int64_t n, const int32_t* bounds,
                          int64_t num_levels, const double* weights, const Stream&) {
#pragma omp parallel for schedule(static) if (n > kParallelThreshold)
  for (int64_t i = 0; i < n; ++i) {
    const int64_t level = level_of(tokens[i], bounds, num_levels);
    out[i] = static_cast<T>(level < 0 ? Wide<T>{1} : static_cast<Wide<T>>(weights[level]));
  }
}

template <Device D, typename T>
void add_level_sums(double* sums, const T* x, const int32_t* tokens, int64_t n,
                    const int32_t* bounds, int64_t num_levels, const Stream&) {
  for (int64_t i = 0; i < n; ++i) {
    const int64_t level = level_of(tokens[i], bounds, num_levels);
    if (level >= 0) sums[level] += static_cast<double>(x[i]);
  }
}

#define INSTANTIATE(T)                                                                             \
  template void gather_level_weights<Device::kCpu, T>(T*, const int32_t*, int64_t, const int32_t*, \
                                                      int64_t, const double*, const Stream&);      \
  template void add_level_sums<Device::kCpu, T>(double*, const T*, const int32_t*, int64_t,        \
                                                const int32_t*, int64_t, const Stream&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
