#include "mirabelle/kernels/bias.h"

#include "cpu/token_chunks.h"

namespace mirabelle::backend {

template <Device D, typename T>
void add_bias(T* x, const T* bias, int64_t num_rows, int64_t num_columns, const Stream&) {
#pragma omp parallel for schedule(static) if (num_rows * num_columns > kParallelThreshold)
  for (int64_t row = 0; row < num_rows; ++row) {
    T* y = x + row * num_columns;
#pragma omp simd
    for (int64_t i = 0; i < num_columns; ++i) y[i] = static_cast<T>(Wide<T>(y[i]) + bias[i]);
  }
}

template <Device D, typename T>
void bias_backward(Wide<T>* grad_bias, const T* grad, int64_t num_rows, int64_t num_columns,
                   int64_t num_chunks, Wide<T>* workspace, const Stream&) {
  sum_over_tokens(grad_bias, workspace, num_rows, num_chunks, num_columns, num_rows * num_columns,
                  [&](int64_t begin, int64_t end, Wide<T>* sums) {
                    for (int64_t row = begin; row < end; ++row) {
                      const T* g = grad + row * num_columns;
#pragma omp simd
                      for (int64_t i = 0; i < num_columns; ++i) sums[i] += g[i];
                    }
                  });
}

#define INSTANTIATE(T)                                                                        \
  template void add_bias<Device::kCpu, T>(T*, const T*, int64_t, int64_t, const Stream&);     \
  template void bias_backward<Device::kCpu, T>(Wide<T>*, const T*, int64_t, int64_t, int64_t, \
                                               Wide<T>*, const Stream&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
