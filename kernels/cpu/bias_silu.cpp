#include "mirabelle/kernels/bias_silu.h"

#include <algorithm>

#include "cpu/parallel_threshold.h"
#include "cpu/vector_math.h"

namespace mirabelle::backend {

template <Device D, typename T>
void bias_silu_forward(T* out, const T* x, const T* bias, int64_t num_rows, int64_t num_columns,
                       const Stream&) {
#pragma omp parallel for schedule(static) if (num_rows * num_columns > kParallelThreshold)
  for (int64_t row = 0; row < num_rows; ++row) {
    const T* from = x + row * num_columns;
    T* to = out + row * num_columns;
#pragma omp simd
    for (int64_t i = 0; i < num_columns; ++i) {
      const T sum = from[i] + bias[i];
      to[i] = sum / (1 + fast_exp(-sum));
    }
  }
}

// With s = 1 / (1 + exp(-x)):  silu(x) = x s,  silu'(x) = s + x s (1 - s). A thread takes some
// columns and goes down the rows.
template <Device D, typename T>
void bias_silu_backward(T* grad_x, T* grad_bias, const T* grad_out, const T* x, const T* bias,
                        int64_t num_rows, int64_t num_columns, const Stream&) {
  constexpr int64_t kColumns = 64;
#pragma omp parallel for schedule(static) if (num_rows * num_columns > kParallelThreshold)
  for (int64_t first = 0; first < num_columns; first += kColumns) {
    const int64_t end = std::min(first + kColumns, num_columns);
    T sums[kColumns] = {};
    for (int64_t row = 0; row < num_rows; ++row) {
      const int64_t begin = row * num_columns;
#pragma omp simd
      for (int64_t i = first; i < end; ++i) {
        const T sum = x[begin + i] + bias[i];
        const T s = 1 / (1 + fast_exp(-sum));
        const T grad = grad_out[begin + i] * (s + sum * s * (1 - s));
        grad_x[begin + i] = grad;
        sums[i - first] += grad;
      }
    }
    for (int64_t i = first; i < end; ++i) grad_bias[i] += sums[i - first];
  }
}

#define INSTANTIATE(T)                                                                             \
  template void bias_silu_forward<Device::kCpu, T>(T*, const T*, const T*, int64_t, int64_t,       \
                                                   const Stream&);                                 \
  template void bias_silu_backward<Device::kCpu, T>(T*, T*, const T*, const T*, const T*, int64_t, \
                                                    int64_t, const Stream&);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace mirabelle::backend
