#pragma once

#include "mirabelle/training/train_config.h"

namespace mirabelle {

/// The learning rate of optimizer step `step` (from 0): linear from 0 over warmup_steps, then
///   cosine:        half a cosine from learning_rate to min_learning_rate at max_steps
///   constant:      learning_rate
///   inverse_sqrt:  learning_rate * sqrt(warmup_steps / step), at least min_learning_rate
double learning_rate_at(const TrainingConfig& config, int64_t step);

}  // namespace mirabelle
