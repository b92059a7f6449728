#pragma once

#include "level_of.h"
#include "mirabelle/kernels/cross_entropy.h"

namespace mirabelle::backend {

/// What a row's gradient is made of:
///   scale * softmax - of_target * one_hot(target) - of_level * [level_begin <= token < level_end]
template <typename T>
struct TargetDistribution {
  T scale, of_target, of_level;
  int64_t level_begin, level_end;
};

template <typename T>
MIRABELLE_HOST_DEVICE TargetDistribution<T> target_distribution(const RowOptions<T>& options,
                                                                int64_t row, int32_t target,
                                                                double grad_scale) {
  T scale = static_cast<T>(grad_scale);
  if (options.weights) scale *= options.weights[row];
  const int64_t level = level_of(target, options.level_bounds, options.num_levels);
  if (level < 0) return {scale, scale, 0, 0, 0};
  const int64_t begin = options.level_bounds[level], end = options.level_bounds[level + 1];
  const T smoothed = scale * options.label_smoothing;
  return {scale, scale - smoothed, smoothed / static_cast<T>(end - begin), begin, end};
}

}  // namespace mirabelle::backend
