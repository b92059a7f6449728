#include "mirabelle/kernels/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/check_indices.h"
#include "cpu/parallel_threshold.h"
#include "cpu/vector_math.h"
#include "cpu/wide_memory.h"

namespace mirabelle::backend {
namespace {

template <typename T>
Wide<T> row_max(const T* x, int64_t n) {
  Wide<T> largest = -std::numeric_limits<Wide<T>>::infinity();
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

/// The loss of a row, whose gradient replaces it. The row is read from memory once: the later
/// passes find it in the cache.
template <typename T>
T differentiate_row(T* x, int64_t vocab_size, int32_t target, T scale) {
  const T largest = row_max(x, vocab_size);
  const T target_logit = x[target] - largest;
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < vocab_size; ++i) {
    x[i] = fast_exp(x[i] - largest);
    sum += x[i];
  }
  const T factor = scale / sum;
#pragma omp simd
  for (int64_t i = 0; i < vocab_size; ++i) x[i] *= factor;
  x[target] -= scale;
  return std::log(sum) - target_logit;
}

float differentiate_row(BFloat16* row, int64_t vocab_size, int32_t target, float scale) {
  float* x = wide_memory(vocab_size);
  std::copy_n(row, vocab_size, x);
  const float loss = differentiate_row(x, vocab_size, target, scale);
#pragma omp simd
  for (int64_t i = 0; i < vocab_size; ++i) row[i] = BFloat16(x[i]);
  return loss;
}

}  // namespace

template <Device D, typename T>
void softmax_cross_entropy(Wide<T>* loss, T* logits, const int32_t* targets, int64_t num_tokens,
                           int64_t vocab_size, const double* grad_scale, const Stream&) {
  check_index_range("targets", targets, num_tokens, std::numeric_limits<int32_t>::min(),
                    vocab_size);
  const Wide<T> scale = static_cast<Wide<T>>(*grad_scale);
#pragma omp parallel for schedule(static) if (num_tokens * vocab_size > kParallelThreshold)
  for (int64_t token = 0; token < num_tokens; ++token) {
    T* x = logits + token * vocab_size;
    const int32_t target = targets[token];
    if (target < 0) {
      std::fill(x, x + vocab_size, T{0});
      loss[token] = 0;
      continue;
    }
    loss[token] = differentiate_row(x, vocab_size, target, scale);
  }
}

template <Device D, typename T>
void log_softmax(T* logits, int64_t num_rows, int64_t vocab_size, const Stream&) {
#pragma omp parallel for schedule(static) if (num_rows * vocab_size > kParallelThreshold)
  for (int64_t row = 0; row < num_rows; ++row) {
    T* x = logits + row * vocab_size;
    const Wide<T> largest = row_max(x, vocab_size);
    Wide<T> sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < vocab_size; ++i) sum += fast_exp(x[i] - largest);
    const Wide<T> log_sum = std::log(sum);
#pragma omp simd
    for (int64_t i = 0; i < vocab_size; ++i) {
      x[i] = static_cast<T>((x[i] - largest) - log_sum);
    }
  }
}

#define INSTANTIATE(T)                                                                         \
  template void softmax_cross_entropy<Device::kCpu, T>(Wide<T>*, T*, const int32_t*, int64_t,  \
                                                       int64_t, const double*, const Stream&); \
  template void log_softmax<Device::kCpu, T>(T*, int64_t, int64_t, const Stream&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
