#pragma once

#include <cuda_bf16.h>

#include "cuda/block_reduce.cuh"
#include "mirabelle/core/bfloat16.h"

// Tensor-core products of one warp: C [16, 8] += A [16, 16] B [16, 8], bfloat16 with float32 sums
// (PTX: mma.m16n8k16). Of a fragment, lane l holds with g = l / 4 and t = l % 4
//   A: rows g and g + 8, columns 2t, 2t + 1, 2t + 8, 2t + 9
//   B: rows 2t, 2t + 1, 2t + 8, 2t + 9, column g
//   C: rows g and g + 8, columns 2t and 2t + 1
// so two neighbouring C make an A.
namespace mirabelle::backend {

struct FragmentA {
  uint32_t pair[4];
};
/// Two B that stand side by side: 16 columns.
struct FragmentB2 {
  uint32_t pair[4];
};
struct FragmentC {
  float value[4] = {};  // (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
};

__device__ inline void multiply_add(FragmentC& c, const FragmentA& a, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c.value[0]), "+f"(c.value[1]), "+f"(c.value[2]), "+f"(c.value[3])
      : "r"(a.pair[0]), "r"(a.pair[1]), "r"(a.pair[2]), "r"(a.pair[3]), "r"(b0), "r"(b1));
}

/// left and right are neighbours: 16 columns.
__device__ inline void multiply_add(FragmentC& left, FragmentC& right, const FragmentA& a,
                                    const FragmentB2& b) {
  multiply_add(left, a, b.pair[0], b.pair[1]);
  multiply_add(right, a, b.pair[2], b.pair[3]);
}

__device__ inline uint32_t pack(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}

/// Two neighbours in memory, aligned to their size.
__device__ inline float2 load_pair(const BFloat16* from) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(from));
}
__device__ inline void store_pair(BFloat16* to, float first, float second) {
  *reinterpret_cast<uint32_t*>(to) = pack(first, second);
}
__device__ inline void store_pair(float* to, float first, float second) {
  *reinterpret_cast<float2*>(to) = make_float2(first, second);
}

/// The A whose columns are those of two neighbouring C, rounded.
__device__ inline FragmentA as_a(const FragmentC& left, const FragmentC& right) {
  return {{pack(left.value[0], left.value[1]), pack(left.value[2], left.value[3]),
           pack(right.value[0], right.value[1]), pack(right.value[2], right.value[3])}};
}

/// Rows of kDim bfloat16 in shared memory, each 16 bytes longer, so that eight rows lie in
/// different banks.
template <int kRows, int kDim>
struct MmaTile {
  BFloat16 row[kRows][kDim + 8];

  /// Starts copying `count` rows from device memory, row r from row_at(r); the others become 0. All
  /// threads of the block call it; commit and wait below.
  template <int kThreads, typename RowAt>
  __device__ void load(RowAt row_at, int count) {
    constexpr int kPieces = kDim / 8;  // of 16 bytes
    for (int i = threadIdx.x; i < kRows * kPieces; i += kThreads) {
      const int r = i / kPieces, first = i % kPieces * 8;
      const bool inside = r < count;
      const BFloat16* from = row_at(inside ? r : 0) + first;
      const auto to = static_cast<unsigned>(__cvta_generic_to_shared(&row[r][first]));
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                   "r"(inside ? 16 : 0));
    }
  }
  /// Row r from rows + r * stride.
  template <int kThreads>
  __device__ void load(const BFloat16* rows, int64_t stride, int count) {
    load<kThreads>([&](int r) { return rows + r * stride; }, count);
  }

  /// Rows first_row .. + 15, features first .. + 15 as an A.
  __device__ FragmentA a(int first_row, int first) const {
    const int lane = threadIdx.x % kWarp;
    FragmentA result;
    load_matrices<false>(result.pair, &row[first_row + lane % 16][first + lane / 16 * 8]);
    return result;
  }
  /// Its transpose as B: rows are the features first .. + 15, columns the rows first_row .. + 15.
  __device__ FragmentB2 b_of_rows(int first_row, int first) const {
    const int lane = threadIdx.x % kWarp;
    FragmentB2 result;
    load_matrices<false>(result.pair,
                         &row[first_row + lane % 8 + lane / 16 * 8][first + lane / 8 % 2 * 8]);
    return result;
  }
  /// As B: rows first_row .. + 15, columns are the features first .. + 15.
  __device__ FragmentB2 b(int first_row, int first) const {
    const int lane = threadIdx.x % kWarp;
    FragmentB2 result;
    load_matrices<true>(result.pair, &row[first_row + lane % 16][first + lane / 16 * 8]);
    return result;
  }

 private:
  /// Four 8 x 8 matrices; lane l names row l % 8 of matrix l / 8.
  template <bool kTransposed>
  __device__ static void load_matrices(uint32_t (&pair)[4], const BFloat16* row_of_lane) {
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
};

/// Ends a group of asynchronous copies.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits until at most kPending of this thread's groups are under way.
template <int kPending>
__device__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace mirabelle::backend
