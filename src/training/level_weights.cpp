#include "mirabelle/training/level_weights.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <numeric>

namespace mirabelle {
namespace {

constexpr double kSmallestPrefixWeight = 1e-6;  // what is 0 could not gain again

/// Scales to this sum.
void normalize(std::vector<double>& values, double sum) {
  const double factor = sum / std::accumulate(values.begin(), values.end(), 0.0);
  for (double& value : values) value *= factor;
}

void start_equal(std::vector<double>& prefix_weights, int64_t num_levels) {
  if (prefix_weights.empty()) {
    prefix_weights.assign(num_levels, 1.0 / static_cast<double>(num_levels));
  }
  assert(static_cast<int64_t>(prefix_weights.size()) == num_levels);
}

}  // namespace

std::vector<double> level_weights(const TrainingConfig& config, int64_t num_levels,
                                  const std::vector<double>& prefix_weights) {
  std::vector<double> weights = config.level_weights;
  if (weights.empty()) weights.assign(num_levels, 1.0);
  assert(static_cast<int64_t>(weights.size()) == num_levels);
  normalize(weights, static_cast<double>(num_levels));
  if (!config.adapts_prefixes()) return weights;
  std::vector<double> prefixes = prefix_weights;
  start_equal(prefixes, num_levels);
  double sum = 0;  // over the prefixes that code `level` is in
  for (int64_t level = num_levels - 1; level >= 0; --level) {
    sum += prefixes[level] / static_cast<double>(level + 1);
    weights[level] += config.prefix_loss_weight * sum;
  }
  return weights;
}

std::vector<double> adapted_prefix_weights(std::vector<double> prefix_weights,
                                           const std::vector<double>& loss_per_level, double rate) {
  const auto num_levels = static_cast<int64_t>(loss_per_level.size());
  start_equal(prefix_weights, num_levels);
  std::vector<double> losses(num_levels);
  double sum = 0;
  for (int64_t level = 0; level < num_levels; ++level) {
    sum += loss_per_level[level];
    losses[level] = sum / static_cast<double>(level + 1);
  }
  const double largest = *std::max_element(losses.begin(), losses.end());
  for (int64_t level = 0; level < num_levels; ++level) {
    const double weight = prefix_weights[level] * std::exp(rate * (losses[level] - largest));
    prefix_weights[level] = std::max(weight, kSmallestPrefixWeight);
  }
  normalize(prefix_weights, 1);
  return prefix_weights;
}

}  // namespace mirabelle
