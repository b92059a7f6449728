#include "mirabelle/kernels/reduce.h"

#include <algorithm>
#include <cstring>

#include "cpu/parallel_threshold.h"

namespace mirabelle::backend {
namespace {

/// Sum of term(x[i]) in chunks that depend on n only, added in their order.
template <typename T, typename Term>
double chunked_sum(const T* x, int64_t n, Term term) {
  constexpr int64_t kMaxChunks = 256;
  double chunk_sums[kMaxChunks];
  const int64_t num_chunks = std::clamp<int64_t>(n / 4096, 1, kMaxChunks);
#pragma omp parallel for schedule(static) if (n > kParallelThreshold)
  for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
    const int64_t begin = chunk * n / num_chunks, end = (chunk + 1) * n / num_chunks;
    double total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = begin; i < end; ++i) total += term(static_cast<double>(x[i]));
    chunk_sums[chunk] = total;
  }
  double total = 0;
  for (int64_t chunk = 0; chunk < num_chunks; ++chunk) total += chunk_sums[chunk];
  return total;
}

}  // namespace

template <Device D, typename T>
void add_sum(double* out, const T* x, int64_t n, const Stream&) {
  *out += chunked_sum(x, n, [](double value) { return value; });
}

template <Device D, typename T>
void sum_of_squares(double* out, const T* x, int64_t n, const Stream&) {
  *out = chunked_sum(x, n, [](double value) { return value * value; });
}

template <>
void fill_zero<Device::kCpu>(void* x, int64_t bytes, const Stream&) {
  std::memset(x, 0, bytes);
}

#define INSTANTIATE(T)                                                               \
  template void add_sum<Device::kCpu, T>(double*, const T*, int64_t, const Stream&); \
  template void sum_of_squares<Device::kCpu, T>(double*, const T*, int64_t, const Stream&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
