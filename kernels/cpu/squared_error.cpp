#include "mirabelle/kernels/squared_error.h"

#include "cpu/parallel_threshold.h"

namespace mirabelle::backend {

template <Device D, typename T>
void squared_error(T* loss, T* x, const T* target, int64_t num_rows, int64_t num_columns,
                   double grad_scale, const Stream&) {
  const T factor = static_cast<T>(2 * grad_scale);
#pragma omp parallel for schedule(static) if (num_rows * num_columns > kParallelThreshold)
  for (int64_t row = 0; row < num_rows; ++row) {
    T* of_row = x + row * num_columns;
    const T* wanted = target + row * num_columns;
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < num_columns; ++i) {
      const T difference = of_row[i] - wanted[i];
      of_row[i] = factor * difference;
      sum += difference * difference;
    }
    loss[row] = sum;
  }
}

template void squared_error<Device::kCpu, float>(float*, float*, const float*, int64_t, int64_t,
                                                 double, const Stream&);
template void squared_error<Device::kCpu, double>(double*, double*, const double*, int64_t, int64_t,
                                                  double, const Stream&);

}  // namespace mirabelle::backend
