#include "mirabelle/model/rotary_scaling.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "mirabelle/kernels/rotary_embedding.h"

namespace mirabelle {
namespace {

/// The feature, not a whole number, that turns so often in the original context.
double feature_of(const TransformerConfig& config, double rotations) {
  const double wavelength = static_cast<double>(config.rope_original_tokens) / rotations;
  return static_cast<double>(config.head_dim()) * std::log(wavelength / (2 * std::numbers::pi)) /
         (2 * std::log(config.rope_theta));
}

/// How much of feature i keeps its frequency, from 0 to 1.
double kept(const TransformerConfig& config, double frequency, int64_t i) {
  if (config.rope_scaling == "linear") return 0;
  const double low = config.rope_low_rotations, high = config.rope_high_rotations;
  double part;
  if (config.rope_scaling == "llama3") {
    const double turns = static_cast<double>(config.rope_original_tokens) * frequency;
    part = (turns / (2 * std::numbers::pi) - low) / (high - low);
  } else {
    const double last = static_cast<double>(config.head_dim() - 1);
    const double begin = std::max(std::floor(feature_of(config, high)), 0.0);
    const double end = std::min(std::ceil(feature_of(config, low)), last);
    part = 1 - (static_cast<double>(i) - begin) / std::max(end - begin, 0.001);
  }
  return std::clamp(part, 0.0, 1.0);
}

}  // namespace

RotaryScaling rotary_scaling(const TransformerConfig& config) {
  RotaryScaling result{rotary_frequencies(config.head_dim(), config.rope_theta), 1};
  if (config.rope_scaling == "none") return result;
  for (size_t i = 0; i < result.frequencies.size(); ++i) {
    double& frequency = result.frequencies[i];
    const double part = kept(config, frequency, static_cast<int64_t>(i));
    frequency *= part + (1 - part) / config.rope_factor;
  }
  if (config.rope_scaling == "yarn") result.amplitude = 0.1 * std::log(config.rope_factor) + 1;
  return result;
}

}  // namespace mirabelle
