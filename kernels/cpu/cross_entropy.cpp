#include "mirabelle/kernels/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/check_indices.h"
#include "cpu/parallel_threshold.h"
#include "cpu/vector_math.h"
#include "cpu/wide_memory.h"
#include "target_distribution.h"

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
T differentiate_row(T* x, int64_t vocab_size, int32_t target, const TargetDistribution<T>& wanted) {
  const T largest = row_max(x, vocab_size);
  const T target_logit = x[target] - largest;
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < vocab_size; ++i) {
    x[i] = fast_exp(x[i] - largest);
    sum += x[i];
  }
  const T factor = wanted.scale / sum;
#pragma omp simd
  for (int64_t i = 0; i < vocab_size; ++i) x[i] *= factor;
#pragma omp simd
  for (int64_t i = wanted.level_begin; i < wanted.level_end; ++i) x[i] -= wanted.of_level;
  x[target] -= wanted.of_target;
  return std::log(sum) - target_logit;
}

float differentiate_row(BFloat16* row, int64_t vocab_size, int32_t target,
                        const TargetDistribution<float>& wanted) {
  float* x = wide_memory(vocab_size);
  std::copy_n(row, vocab_size, x);
  const float loss = differentiate_row(x, vocab_size, target, wanted);
#pragma omp simd
  for (int64_t i = 0; i < vocab_size; ++i) row[i] = BFloat16(x[i]);
  return loss;
}

bool is_of_shard(int64_t target, int64_t shard_size) { return 0 <= target && target < shard_size; }

}  // namespace

template <Device D, typename T>
void softmax_cross_entropy(Wide<T>* loss, T* logits, const int32_t* targets, int64_t num_tokens,
                           int64_t vocab_size, const double* grad_scale,
                           const RowOptions<Wide<T>>& options, const Stream&) {
  check_index_range("targets", targets, num_tokens, std::numeric_limits<int32_t>::min(),
                    vocab_size);
  if (options.num_levels > 0) {
    check_index_range("level_bounds", options.level_bounds, options.num_levels + 1, 0,
                      vocab_size + 1);
  }
#pragma omp parallel for schedule(static) if (num_tokens * vocab_size > kParallelThreshold)
  for (int64_t token = 0; token < num_tokens; ++token) {
    T* x = logits + token * vocab_size;
    const int32_t target = targets[token];
    if (target < 0) {
      std::fill(x, x + vocab_size, T{0});
      loss[token] = 0;
      continue;
    }
    const auto wanted = target_distribution(options, token, target, *grad_scale);
    loss[token] = differentiate_row(x, vocab_size, target, wanted);
  }
}

template <Device D, typename T>
void shard_maximum(Wide<T>* largest, const T* logits, bool accumulate, int64_t num_tokens,
                   int64_t shard_size, const Stream&) {
#pragma omp parallel for schedule(static) if (num_tokens * shard_size > kParallelThreshold)
  for (int64_t token = 0; token < num_tokens; ++token) {
    const Wide<T> of_shard = row_max(logits + token * shard_size, shard_size);
    largest[token] = accumulate ? std::max(largest[token], of_shard) : of_shard;
  }
}

template <Device D, typename T>
void shard_sums(Wide<T>* sums, const T* logits, const Wide<T>* largest, const int32_t* targets,
                int64_t num_tokens, int64_t shard_size, int64_t first_token, const Stream&) {
#pragma omp parallel for schedule(static) if (num_tokens * shard_size > kParallelThreshold)
  for (int64_t token = 0; token < num_tokens; ++token) {
    const T* x = logits + token * shard_size;
    const int64_t target = targets[token] - first_token;
    Wide<T> sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < shard_size; ++i) sum += fast_exp(x[i] - largest[token]);
    sums[token] = sum;
    sums[num_tokens + token] = is_of_shard(target, shard_size) ? x[target] - largest[token] : 0;
  }
}

template <Device D, typename T>
void shard_gradient(Wide<T>* loss, T* logits, const Wide<T>* largest, const Wide<T>* sums,
                    const int32_t* targets, int64_t num_tokens, int64_t shard_size,
                    int64_t first_token, const double* grad_scale,
                    const RowOptions<Wide<T>>& options, const Stream&) {
#pragma omp parallel for schedule(static) if (num_tokens * shard_size > kParallelThreshold)
  for (int64_t token = 0; token < num_tokens; ++token) {
    T* x = logits + token * shard_size;
    if (targets[token] < 0) {
      std::fill_n(x, shard_size, T{});
      loss[token] = 0;
      continue;
    }
    const auto wanted = target_distribution(options, token, targets[token], *grad_scale);
    const Wide<T> factor = wanted.scale / sums[token];
    const int64_t target = targets[token] - first_token;
    const bool is_here = is_of_shard(target, shard_size);
    const Wide<T> target_logit = is_here ? x[target] : Wide<T>{0};
    const auto differentiate = [&](int64_t begin, int64_t end, Wide<T> subtracted) {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) {
        x[i] = static_cast<T>(fast_exp(x[i] - largest[token]) * factor - subtracted);
      }
    };
    const auto level_begin = std::clamp<int64_t>(wanted.level_begin - first_token, 0, shard_size);
    const auto level_end = std::clamp<int64_t>(wanted.level_end - first_token, 0, shard_size);
    differentiate(0, level_begin, 0);
    differentiate(level_begin, level_end, wanted.of_level);
    differentiate(level_end, shard_size, 0);
    // again, so that it is rounded once
    if (is_here) {
      x[target] = static_cast<T>(fast_exp(target_logit - largest[token]) * factor -
                                 (wanted.of_level + wanted.of_target));
    }
    loss[token] = std::log(sums[token]) - sums[num_tokens + token];
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

#define INSTANTIATE(T)                                                                             \
  template void softmax_cross_entropy<Device::kCpu, T>(Wide<T>*, T*, const int32_t*, int64_t,      \
                                                       int64_t, const double*,                     \
                                                       const RowOptions<Wide<T>>&, const Stream&); \
  template void shard_maximum<Device::kCpu, T>(Wide<T>*, const T*, bool, int64_t, int64_t,         \
                                               const Stream&);                                     \
  template void shard_sums<Device::kCpu, T>(Wide<T>*, const T*, const Wide<T>*, const int32_t*,    \
                                            int64_t, int64_t, int64_t, const Stream&);             \
  template void shard_gradient<Device::kCpu, T>(                                                   \
      Wide<T>*, T*, const Wide<T>*, const Wide<T>*, const int32_t*, int64_t, int64_t, int64_t,     \
      const double*, const RowOptions<Wide<T>>&, const Stream&);                                   \
  template void log_softmax<Device::kCpu, T>(T*, int64_t, int64_t, const Stream&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
