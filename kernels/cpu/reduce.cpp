#include "mirabelle/kernels/reduce.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/parallel_threshold.h"
#include "fixed_point.h"
#include "float_bits.h"

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

/// Columns that are summed at a time: they stay in the first cache at every depth of the tree.
constexpr int64_t kTreeColumns = 256;

/// sum [columns] = the tree over `count` rows of x, which are n elements apart.
template <typename W, typename X>
void sum_columns(W* sum, const X* x, int64_t count, int64_t n, int64_t columns) {
  if (count == 1) {
    std::copy_n(x, columns, sum);
    return;
  }
  const auto left = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(count - 1)));
  W others[kTreeColumns];
  sum_columns(sum, x, left, n, columns);
  sum_columns(others, x + left * n, count - left, n, columns);
#pragma omp simd
  for (int64_t i = 0; i < columns; ++i) sum[i] += others[i];
}

}  // namespace

// Without their signs, the bits of numbers are in the order of the numbers, and NaN comes last.
template <Device D, typename T>
void max_magnitude(double* out, const T* x, int64_t n, const Stream&) {
  using Bits = typename FloatBits<T>::type;
  constexpr Bits kMagnitude = static_cast<Bits>(~Bits{0}) >> 1;
  Bits largest = 0;
#pragma omp parallel for simd schedule(static) reduction(max : largest) if (n > kParallelThreshold)
  for (int64_t i = 0; i < n; ++i) {
    largest = std::max<Bits>(largest, std::bit_cast<Bits>(x[i]) & kMagnitude);
  }
  const double magnitude = std::bit_cast<T>(largest);
  *out =
      std::max(*out, std::isnan(magnitude) ? std::numeric_limits<double>::infinity() : magnitude);
}

template <Device D, typename T>
void add_fixed_point_squares(int64_t* sums, const T* x, int64_t n, const double* largest,
                             const Stream&) {
  if (!has_squares(*largest)) return;
  const double factor = fixed_point_factor(*largest);
  constexpr int64_t kChunk = 4096;  // terms below 2^50: their sum fits 64 bits
  uint64_t high = 0, low = 0;
#pragma omp parallel for schedule(static) reduction(+ : high, low) if (n > kParallelThreshold)
  for (int64_t first = 0; first < n; first += kChunk) {
    uint64_t partial_sum = 0;
    for (int64_t i = first; i < std::min(n, first + kChunk); ++i) {
      const double scaled = x[i] * factor;
      partial_sum += static_cast<uint64_t>(static_cast<int64_t>(scaled * scaled));
    }
    high += partial_sum >> 32;
    low += partial_sum & 0xFFFFFFFF;
  }
  sums[0] += static_cast<int64_t>(high);
  sums[1] += static_cast<int64_t>(low);
}

template <>
void fixed_point_value<Device::kCpu>(double* out, const int64_t* sums, const double* largest,
                                     const Stream&) {
  *out = fixed_point_value(sums[0], sums[1], *largest);
}

template <Device D, typename T, typename X>
void tree_sum(T* out, const X* x, int64_t count, int64_t n, const Stream&) {
#pragma omp parallel for schedule(static) if (count * n > kParallelThreshold)
  for (int64_t first = 0; first < n; first += kTreeColumns) {
    const int64_t columns = std::min(kTreeColumns, n - first);
    Wide<T> sum[kTreeColumns];
    sum_columns(sum, x + first, count, n, columns);
#pragma omp simd
    for (int64_t i = 0; i < columns; ++i) out[first + i] = static_cast<T>(sum[i]);
  }
}

template <Device D, typename T>
void add(T* out, const T* x, int64_t n, const Stream&) {
#pragma omp parallel for simd schedule(static) if (n > kParallelThreshold)
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(Wide<T>{out[i]} + Wide<T>{x[i]});
}

template <Device D, typename T>
void scale_by(T* out, const T* x, double factor, bool accumulate, int64_t n, const Stream&) {
  const auto wide_factor = static_cast<Wide<T>>(factor);
#pragma omp parallel for simd schedule(static) if (n > kParallelThreshold)
  for (int64_t i = 0; i < n; ++i) {
    const Wide<T> scaled = wide_factor * Wide<T>{x[i]};
    out[i] = static_cast<T>(accumulate ? Wide<T>{out[i]} + scaled : scaled);
  }
}

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

template void tree_sum<Device::kCpu>(BFloat16*, const float*, int64_t, int64_t, const Stream&);
#define INSTANTIATE(T)                                                                            \
  template void max_magnitude<Device::kCpu>(double*, const T*, int64_t, const Stream&);           \
  template void add_fixed_point_squares<Device::kCpu>(int64_t*, const T*, int64_t, const double*, \
                                                      const Stream&);                             \
  template void tree_sum<Device::kCpu>(T*, const T*, int64_t, int64_t, const Stream&);            \
  template void add<Device::kCpu>(T*, const T*, int64_t, const Stream&);                          \
  template void scale_by<Device::kCpu>(T*, const T*, double, bool, int64_t, const Stream&);       \
  template void add_sum<Device::kCpu, T>(double*, const T*, int64_t, const Stream&);              \
  template void sum_of_squares<Device::kCpu, T>(double*, const T*, int64_t, const Stream&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
