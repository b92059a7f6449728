#include "mirabelle/kernels/nearest_code.h"

#include <omp.h>

#include <limits>

#include "mirabelle/kernels/matmul.h"

namespace mirabelle::backend {
namespace {

/// The index of the smallest half_norms[j] - products[j]; the lowest if several are.
template <typename T>
int32_t nearest(const T* half_norms, const T* products, int64_t codebook_size) {
  constexpr int64_t kLanes = 64 / sizeof(T);  // each looks at every kLanes-th code
  T best[kLanes];
  int32_t best_code[kLanes];
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    best[lane] = std::numeric_limits<T>::infinity();
    best_code[lane] = 0;
  }
  const int64_t whole = codebook_size / kLanes * kLanes;
  for (int64_t first = 0; first < whole; first += kLanes) {
#pragma omp simd
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const T distance = half_norms[first + lane] - products[first + lane];
      const bool nearer = distance < best[lane];
      best[lane] = nearer ? distance : best[lane];
      best_code[lane] = nearer ? static_cast<int32_t>(first + lane) : best_code[lane];
    }
  }
  T smallest = std::numeric_limits<T>::infinity();
  int32_t code = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    if (best[lane] < smallest || (best[lane] == smallest && best_code[lane] < code)) {
      smallest = best[lane];
      code = best_code[lane];
    }
  }
  for (int64_t j = whole; j < codebook_size; ++j) {
    if (half_norms[j] - products[j] < smallest) {
      smallest = half_norms[j] - products[j];
      code = static_cast<int32_t>(j);
    }
  }
  return code;
}

}  // namespace

template <Device D, typename T>
void nearest_code(int32_t* codes, const T* residual, const T* codebook, int64_t n,
                  int64_t codebook_size, int64_t codebook_dim, T* workspace, const Stream& stream) {
  if (n == 0) return;
  T *products = workspace, *half_norms = workspace + n * codebook_size;
  matmul<D, T>(products, residual, false, codebook, true, false, 1, n, codebook_size, codebook_dim,
               stream);
#pragma omp parallel for schedule(static)
  for (int64_t j = 0; j < codebook_size; ++j) {
    const T* row = codebook + j * codebook_dim;
    T squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t c = 0; c < codebook_dim; ++c) squares += row[c] * row[c];
    half_norms[j] = squares / 2;
  }
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < n; ++i) {
    codes[i] = nearest(half_norms, products + i * codebook_size, codebook_size);
  }
}

template <Device D, typename T>
void subtract_code(T* residual, const int32_t* codes, const T* codebook, int64_t n,
                   int64_t codebook_dim, const Stream&) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < n; ++i) {
    T* row = residual + i * codebook_dim;
    const T* code = codebook + codes[i] * codebook_dim;
#pragma omp simd
    for (int64_t c = 0; c < codebook_dim; ++c) row[c] -= code[c];
  }
}

// Every thread reads all codes and adds up a range of them that only it owns, so the order within a
// code is that of i however many threads there are.
template <Device D, typename T>
void accumulate_codes(double* sums, int64_t* counts, const T* residual, const int32_t* codes,
                      int64_t n, int64_t codebook_size, int64_t codebook_dim, const Stream&) {
#pragma omp parallel
  {
    const int64_t thread = omp_get_thread_num(), num_threads = omp_get_num_threads();
    const int64_t begin = thread * codebook_size / num_threads;
    const int64_t end = (thread + 1) * codebook_size / num_threads;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t code = codes[i];
      if (code < begin || code >= end) continue;
      const T* row = residual + i * codebook_dim;
      double* sum = sums + code * codebook_dim;
#pragma omp simd
      for (int64_t c = 0; c < codebook_dim; ++c) sum[c] += row[c];
      ++counts[code];
    }
  }
}

#define INSTANTIATE(T)                                                                         \
  template void nearest_code<Device::kCpu, T>(int32_t*, const T*, const T*, int64_t, int64_t,  \
                                              int64_t, T*, const Stream&);                     \
  template void subtract_code<Device::kCpu, T>(T*, const int32_t*, const T*, int64_t, int64_t, \
                                               const Stream&);                                 \
  template void accumulate_codes<Device::kCpu, T>(double*, int64_t*, const T*, const int32_t*, \
                                                  int64_t, int64_t, int64_t, const Stream&);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace mirabelle::backend
