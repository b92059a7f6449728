#pragma once

#include <algorithm>
#include <bit>
#include <cstring>

#include "dropout_arguments.h"
#include "mirabelle/core/random.h"

namespace mirabelle::backend {

/// Features are masked in blocks of this many: 16 Philox counters side by side, 8 features each.
inline constexpr int64_t kDropoutBlock = 128;

/// keep[0 .. kDropoutBlock) for features first_feature .. of a token; first_feature is a multiple
/// of kDropoutBlock. The same bits as core/random.h's philox(), written so that the lanes
/// vectorise.
template <typename T>
inline void dropout_block(T* keep, const DropoutArguments& dropout, int64_t token,
                          int64_t first_feature) {
  static_assert(std::endian::native == std::endian::little);  // the low half of a word comes first
  constexpr int kLanes = kDropoutBlock / 8;
  uint32_t c0[kLanes], c1[kLanes], c2[kLanes], c3[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    c0[lane] = static_cast<uint32_t>(dropout.sequence_ids[token]);
    c1[lane] = static_cast<uint32_t>(dropout.positions[token]);
    c2[lane] = static_cast<uint32_t>(first_feature / 8 + lane);
    c3[lane] = 0;
  }
  const auto key = static_cast<uint64_t>(*dropout.key);
  uint32_t key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint64_t product0 = uint64_t{0xD2511F53} * c0[lane];
      const uint64_t product1 = uint64_t{0xCD9E8D57} * c2[lane];
      c0[lane] = static_cast<uint32_t>(product1 >> 32) ^ c1[lane] ^ key0;
      c1[lane] = static_cast<uint32_t>(product1);
      c2[lane] = static_cast<uint32_t>(product0 >> 32) ^ c3[lane] ^ key1;
      c3[lane] = static_cast<uint32_t>(product0);
    }
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  uint32_t words[kDropoutBlock / 2];
  for (int lane = 0; lane < kLanes; ++lane) {
    words[4 * lane] = c0[lane];
    words[4 * lane + 1] = c1[lane];
    words[4 * lane + 2] = c2[lane];
    words[4 * lane + 3] = c3[lane];
  }
  uint16_t halves[kDropoutBlock];
  std::memcpy(halves, words, sizeof(halves));
  const T scale = static_cast<T>(dropout.scale);
#pragma omp simd
  for (int64_t i = 0; i < kDropoutBlock; ++i) {
    keep[i] = halves[i] < dropout.threshold ? T{0} : scale;
  }
}

/// Calls body(feature, keep) for features 0 .. n - 1 of a token, where keep is 0 for a dropped
/// feature and the scale of the others (kernels/dropout.h); 1 without dropout. The calls vectorise:
/// they must not depend on each other.
template <typename T, typename Body>
inline void for_each_kept(const DropoutArguments& dropout, int64_t token, int64_t n, Body body) {
  if (dropout.threshold == 0) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) body(i, T{1});
    return;
  }
  T keep[kDropoutBlock];
  for (int64_t first = 0; first < n; first += kDropoutBlock) {
    dropout_block(keep, dropout, token, first);
    const int64_t count = std::min(kDropoutBlock, n - first);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) body(first + i, keep[i]);
  }
}

}  // namespace mirabelle::backend
