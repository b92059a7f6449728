#pragma once

#include <cstdint>
#include <vector>

#include "mirabelle/training/train_config.h"

namespace mirabelle {

// How often the loss of code t of an item, t = 1 .. num_levels, counts in training:
//
//   base_t + prefix_loss_weight * sum over l >= t of w_l / l
//
// base are training.level_weights, scaled to a mean of 1. The second term is there with
// training.prefix_loss adaptive (Yu et al. 2026, "APAO: Adaptive Prefix-Aware Optimization for
// Generative Recommendation", arXiv 2603.02730, with pointwise losses): the loss of a prefix of l
// codes is the mean of their losses, and w_l, the prefixes' weights, have a sum of 1. As that is
// linear in the losses of codes, the sum over l is taken here, not in the model.
//
// The prefixes' weights are part of the training state. At first they are equal, or empty, which
// means the same; after every step
//
//   w_l = w_l exp(rate * loss of prefix l in the step's global batch), scaled to a sum of 1
//
// so at equal losses they stay, and the prefix that is predicted worst gains. None falls below
// 1e-6 before the scaling: it must be able to gain again.

/// [num_levels]; config.level_weights are empty or have that size, as have prefix_weights.
std::vector<double> level_weights(const TrainingConfig& config, int64_t num_levels,
                                  const std::vector<double>& prefix_weights);

/// The prefixes' weights after a step with these mean losses of the codes of each level.
std::vector<double> adapted_prefix_weights(std::vector<double> prefix_weights,
                                           const std::vector<double>& loss_per_level, double rate);

}  // namespace mirabelle
