#pragma once

#include <cstdint>

#include "mirabelle/core/bfloat16.h"

// The instructions for which CUDA C++ has no name. (Tests have another file of this name, which
// does the same on a CPU.)
namespace mirabelle::backend::ptx {

/// One warp: c += a b, see mma.cuh for who holds what.
__device__ inline void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// One warp: four 8 x 8 matrices from shared memory; lane l names row l % 8 of matrix l / 8, and
/// gets of each two neighbours of row l / 4, or of column l / 4 if kTransposed.
template <bool kTransposed>
__device__ inline void load_matrices(uint32_t (&pair)[4], const BFloat16* row_of_lane) {
  const auto from = static_cast<unsigned>(__cvta_generic_to_shared(row_of_lane));
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(pair[0]), "=r"(pair[1]), "=r"(pair[2]), "=r"(pair[3])
                 : "r"(from)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(pair[0]), "=r"(pair[1]), "=r"(pair[2]), "=r"(pair[3])
                 : "r"(from)
                 : "memory");
  }
}

/// Starts copying 16 bytes to shared memory; zeros if not `inside`, but `from` must be valid.
__device__ inline void copy_16_bytes(BFloat16* to, const BFloat16* from, bool inside) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
               "r"(inside ? 16 : 0));
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace mirabelle::backend::ptx
