#include "mirabelle/kernels/contrastive.h"

#include <limits>

#include "cpu/parallel_threshold.h"

namespace mirabelle::backend {

template <Device D, typename T>
void contrastive_logits(T* logits, const int32_t* partners, int64_t num_rows, int64_t num_columns,
                        int64_t first_row, double temperature, const Stream&) {
  constexpr T kAbsent = -std::numeric_limits<T>::infinity();
  const T factor = static_cast<T>(1 / temperature);
#pragma omp parallel for schedule(static) if (num_rows * num_columns > kParallelThreshold)
  for (int64_t row = 0; row < num_rows; ++row) {
    T* of_row = logits + row * num_columns;
    for (int64_t j = 0; j < num_columns; ++j)
      of_row[j] = partners[j] < 0 ? kAbsent : factor * of_row[j];
    of_row[first_row + row] = kAbsent;
  }
}

template void contrastive_logits<Device::kCpu, float>(float*, const int32_t*, int64_t, int64_t,
                                                      int64_t, double, const Stream&);
template void contrastive_logits<Device::kCpu, double>(double*, const int32_t*, int64_t, int64_t,
                                                       int64_t, double, const Stream&);

}  // namespace mirabelle::backend
