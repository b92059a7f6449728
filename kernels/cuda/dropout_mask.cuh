#pragma once

#include "cuda/vector_load.cuh"
#include "dropout_arguments.h"

namespace mirabelle::backend {

/// What the features [first_feature, first_feature + 8) of a token are multiplied with: 0 for a
/// dropped one, the scale for the others; 1 without dropout. first_feature is a multiple of 8. The
/// same Philox block as core/random.h's and the CPU's.
__device__ inline Vector dropout_keep(const DropoutArguments& dropout, int64_t token,
                                      int64_t first_feature) {
  Vector keep;
  if (dropout.threshold == 0) {
#pragma unroll
    for (float& value : keep.value) value = 1;
    return keep;
  }
  uint32_t counter[4] = {static_cast<uint32_t>(dropout.sequence_ids[token]),
                         static_cast<uint32_t>(dropout.positions[token]),
                         static_cast<uint32_t>(first_feature / kVector), 0};
  const auto key = static_cast<uint64_t>(*dropout.key);
  uint32_t key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = __umulhi(0xD2511F53u, counter[0]), low0 = 0xD2511F53u * counter[0];
    const uint32_t high1 = __umulhi(0xCD9E8D57u, counter[2]), low1 = 0xCD9E8D57u * counter[2];
    counter[0] = high1 ^ counter[1] ^ key0;
    counter[1] = low1;
    counter[2] = high0 ^ counter[3] ^ key1;
    counter[3] = low0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  const float scale = static_cast<float>(dropout.scale);
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    const uint32_t bits = i % 2 == 0 ? counter[i / 2] & 0xFFFF : counter[i / 2] >> 16;
    keep.value[i] = bits < dropout.threshold ? 0.0f : scale;
  }
  return keep;
}

}  // namespace mirabelle::backend
