#pragma once

#include <string>

#include "mirabelle/training/checkpoint.h"
#include "mirabelle/training/train_config.h"

namespace mirabelle {

// What becomes of a step whose loss or gradient is not finite, or whose gradient is far larger than
// before (training.bad_step, spike_factor).

/// The norm above which a gradient is bad: spike_factor times the mean of the good steps' norms,
/// once there are spike_warmup_steps of them; before, and without a factor, the largest double. The
/// optimizer compares with it on the device, so that nobody waits for the host.
double max_good_norm(const TrainingConfig& config, const TrainingState& state);

/// Counts a good step. The mean is of all so far, and from 100 on follows by a hundredth.
void count_good_step(TrainingState& state, double grad_norm);
/// Counts a step that was not taken.
void count_bad_step(TrainingState& state);

/// "the loss is 2.5, the gradient's norm nan", with the limit if there is one.
std::string describe_bad_step(double loss, double grad_norm, double max_good_norm);

}  // namespace mirabelle
