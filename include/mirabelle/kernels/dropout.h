#pragma once

#include "mirabelle/core/tensor.h"

namespace mirabelle {

/// Dropout inside a fused kernel: each element of a residual branch or embedding is zeroed with
/// probability `rate`, the others are scaled so that the expected value stays. Whether an element
/// lives is a pure function of (key, sequence, position, feature), so forward and backward passes,
/// ranks and backends agree and no mask is stored.
///
/// Element `feature` of a token takes 16 bits of philox(key, {sequence, position, feature / 8, 0}):
/// word (feature % 8) / 2, low half for even features, high half for odd ones. It is dropped if
/// they are below threshold = min(round(rate * 65536), 65535), and else multiplied by
/// 65536 / (65536 - threshold).
struct Dropout {
  double rate = 0;  ///< 0 <= rate < 1; 0 does nothing and needs no coordinates
  TensorView key;  ///< [1] int64, the bits of random_key(seed, "dropout", {step, site}): in memory,
                   ///< so that a recorded CUDA graph serves every step
  TensorView sequence_ids;  ///< [num_tokens] int32: number of the token's sequence within the step
  TensorView positions;     ///< [num_tokens] int32: position within the sequence
};

}  // namespace mirabelle
