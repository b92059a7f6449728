// Apart from nearest_code.cpp, because CMake compiles it without fused multiply-adds: all
// instruction sets give the same bits.
#include <numeric>

#include "mirabelle/kernels/nearest_code.h"

namespace mirabelle::backend {
namespace {

/// In independent lanes, which the compiler can keep in vector registers.
template <typename T>
T squared_distance(const T* a, const T* b, int64_t dim) {
  constexpr int64_t kLanes = 64 / sizeof(T);
  T lanes[kLanes] = {};
  int64_t j = 0;
  for (; j + kLanes <= dim; j += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const T difference = a[j + lane] - b[j + lane];
      lanes[lane] += difference * difference;
    }
  }
  T sum = std::accumulate(lanes, lanes + kLanes, T{0});
  for (; j < dim; ++j) sum += (a[j] - b[j]) * (a[j] - b[j]);
  return sum;
}

}  // namespace

template <Device D, typename T>
void code_distances(T* distances, const T* residual, const int32_t* codes, const T* codebook,
                    int64_t n, int64_t codebook_dim, const Stream&) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < n; ++i) {
    distances[i] = squared_distance(residual + i * codebook_dim, codebook + codes[i] * codebook_dim,
                                    codebook_dim);
  }
}

template void code_distances<Device::kCpu, float>(float*, const float*, const int32_t*,
                                                  const float*, int64_t, int64_t, const Stream&);
template void code_distances<Device::kCpu, double>(double*, const double*, const int32_t*,
                                                   const double*, int64_t, int64_t, const Stream&);

}  // namespace mirabelle::backend
