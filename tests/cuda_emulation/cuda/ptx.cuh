#pragma once

#include "mirabelle/core/bfloat16.h"

// What kernels/cuda/ptx.cuh does, on the emulated GPU. Copies are done at once.
namespace mirabelle::backend::ptx {

inline float half_of(uint32_t pair, int half) {
  return __uint_as_float((half ? pair >> 16 : pair & 0xFFFF) << 16);
}

inline void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  static float a_of_warp[32][16][16], b_of_warp[32][16][8];
  auto& full_a = a_of_warp[threadIdx.x / 32];
  auto& full_b = b_of_warp[threadIdx.x / 32];
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 4; ++i) {
      full_a[g + i % 2 * 8][2 * t + i / 2 * 8 + half] = half_of(a[i], half);
    }
    full_b[2 * t + half][g] = half_of(b0, half);
    full_b[2 * t + 8 + half][g] = half_of(b1, half);
  }
  emulation::warp_barrier();
  for (int i = 0; i < 4; ++i) {
    for (int k = 0; k < 16; ++k) c[i] += full_a[g + i / 2 * 8][k] * full_b[k][2 * t + i % 2];
  }
  emulation::warp_barrier();
}

template <bool kTransposed>
inline void load_matrices(uint32_t (&pair)[4], const BFloat16* row_of_lane) {
  const unsigned lane = threadIdx.x % 32;
  const BFloat16* rows[32];
  for (unsigned other = 0; other < 32; ++other) {
    rows[other] = emulation::from_lane(row_of_lane, other);
  }
  for (unsigned matrix = 0; matrix < 4; ++matrix) {
    uint16_t bits[2];
    for (unsigned i = 0; i < 2; ++i) {
      const unsigned row = kTransposed ? lane % 4 * 2 + i : lane / 4;
      const unsigned column = kTransposed ? lane / 4 : lane % 4 * 2 + i;
      std::memcpy(&bits[i], rows[matrix * 8 + row] + column, sizeof(uint16_t));
    }
    pair[matrix] = bits[0] | uint32_t{bits[1]} << 16;
  }
}

inline void copy_16_bytes(BFloat16* to, const BFloat16* from, bool inside) {
  if (inside) {
    std::memcpy(to, from, 16);
  } else {
    std::memset(to, 0, 16);
  }
}
inline void commit_copies() {}
template <int kPending>
inline void wait_for_copies() {}

}  // namespace mirabelle::backend::ptx
