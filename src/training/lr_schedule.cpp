#include "mirabelle/training/lr_schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace mirabelle {

double learning_rate_at(const TrainingConfig& config, int64_t step) {
  if (step < config.warmup_steps) {
    return config.learning_rate * static_cast<double>(step + 1) /
           static_cast<double>(config.warmup_steps);
  }
  const double after_warmup = static_cast<double>(step - config.warmup_steps);
  if (config.schedule == "cosine") {
    const double length = static_cast<double>(config.max_steps - config.warmup_steps);
    const double progress = std::min(1.0, after_warmup / std::max(1.0, length));
    return config.min_learning_rate + (config.learning_rate - config.min_learning_rate) * 0.5 *
                                          (1 + std::cos(std::numbers::pi * progress));
  }
  if (config.schedule == "inverse_sqrt") {
    const double warmup = std::max<double>(1.0, static_cast<double>(config.warmup_steps));
    return std::max(config.min_learning_rate,
                    config.learning_rate * std::sqrt(warmup / (warmup + after_warmup)));
  }
  return config.learning_rate;
}

}  // namespace mirabelle
