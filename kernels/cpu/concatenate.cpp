#include "mirabelle/kernels/concatenate.h"

#include <algorithm>

#include "cpu/parallel_threshold.h"

namespace mirabelle::backend {

template <Device D, typename T>
void concatenate_columns(T* out, const T* x, int64_t num_rows, int64_t num_columns,
                         int64_t shard_columns, const Stream&) {
#pragma omp parallel for schedule(static) if (num_rows * num_columns > kParallelThreshold)
  for (int64_t row = 0; row < num_rows; ++row) {
    const T* from = x + row * shard_columns;
    for (int64_t first = 0; first < num_columns; first += shard_columns) {
      std::copy_n(from, std::min(shard_columns, num_columns - first),
                  out + row * num_columns + first);
      from += num_rows * shard_columns;
    }
  }
}

#define INSTANTIATE(T)                                                                     \
  template void concatenate_columns<Device::kCpu>(T*, const T*, int64_t, int64_t, int64_t, \
                                                  const Stream&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
