#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "mirabelle/kernels/dropout.h"

namespace mirabelle::testing {

/// Philox4x32-10 once more, from the paper's description (Salmon et al. 2011, section 3.3), so that
/// the masks are not checked against the code that makes them. Returns word `word` of the block.
inline uint32_t oracle_philox_word(uint64_t key, uint32_t counter0, uint32_t counter1,
                                   uint32_t counter2, uint32_t counter3, int word) {
  uint32_t left[2] = {counter1, counter3}, right[2] = {counter0, counter2};
  const uint64_t multiplier[2] = {0xD2511F53u, 0xCD9E8D57u};
  const uint32_t weyl[2] = {0x9E3779B9u, 0xBB67AE85u};
  const uint32_t start[2] = {uint32_t(key & 0xFFFFFFFFu), uint32_t(key >> 32)};
  for (uint32_t round = 0; round < 10; ++round) {
    uint32_t new_left[2], new_right[2];
    for (int i = 0; i < 2; ++i) {  // half i is made from the product of the other half
      const uint64_t product = multiplier[1 - i] * right[1 - i];
      new_right[i] = uint32_t(product >> 32) ^ left[i] ^ (start[i] + round * weyl[i]);
      new_left[i] = uint32_t(product & 0xFFFFFFFFu);
    }
    for (int i = 0; i < 2; ++i) left[i] = new_left[i], right[i] = new_right[i];
  }
  return word % 2 == 0 ? right[word / 2] : left[word / 2];
}

/// The key of the masks in tests.
inline constexpr int64_t kDropoutKey = 0x1234567887654321;

/// What the header of dropout promises for one element: 0 or the scale.
inline double oracle_keep(const Dropout& dropout, int32_t sequence, int32_t position,
                          int64_t feature) {
  const uint32_t word =
      oracle_philox_word(kDropoutKey, uint32_t(sequence), uint32_t(position), uint32_t(feature / 8),
                         0, static_cast<int>(feature % 8 / 2));
  const uint32_t bits = feature % 2 == 0 ? word % 65536 : word / 65536;
  const double threshold = std::fmin(std::round(dropout.rate * 65536), 65535);
  return bits < threshold ? 0.0 : 65536 / (65536 - threshold);
}

/// Coordinates of packed sequences of these lengths, numbered from first_sequence.
struct Coordinates {
  std::vector<int32_t> sequence_ids, positions;
};

inline Coordinates packed_coordinates(const std::vector<int32_t>& lengths, int32_t first_sequence) {
  Coordinates coordinates;
  for (size_t s = 0; s < lengths.size(); ++s) {
    for (int32_t position = 0; position < lengths[s]; ++position) {
      coordinates.sequence_ids.push_back(first_sequence + static_cast<int32_t>(s));
      coordinates.positions.push_back(position);
    }
  }
  return coordinates;
}

}  // namespace mirabelle::testing
