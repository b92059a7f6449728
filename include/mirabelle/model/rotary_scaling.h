#pragma once

#include <vector>

#include "mirabelle/model/transformer_config.h"

namespace mirabelle {

/// The angles per position of the features of a head, and what queries and keys are multiplied by.
struct RotaryScaling {
  std::vector<double> frequencies;  ///< [head_dim / 2]
  double amplitude = 1;
};

/// With f = theta^(-2 i / head_dim), of which a context of rope_original_tokens sees
/// rotations = rope_original_tokens * f / (2 pi) turns, and with s = rope_factor:
///
///   none     f
///   linear   f / s                                            (Chen et al. 2023)
///   llama3   f / s where rotations < low, f where rotations > high, between them a mixture that is
///            linear in `rotations`                            (Llama 3.1)
///   yarn     the same two ends, between them a mixture that is linear in i, whose ends are the
///            whole numbers around where rotations = high and low; amplitude 0.1 ln(s) + 1
///                                                             (Peng et al. 2023, eq. 13 and 22)
RotaryScaling rotary_scaling(const TransformerConfig& config);

}  // namespace mirabelle
