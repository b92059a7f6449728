#pragma once

#include <cuda_bf16.h>

#include "cuda/block_reduce.cuh"
#include "cuda/ptx.cuh"
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
  ptx::mma_m16n8k16(c.value, a.pair, b0, b1);
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
      ptx::copy_16_bytes(&row[r][first], from, inside);
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
    ptx::load_matrices<false>(result.pair, &row[first_row + lane % 16][first + lane / 16 * 8]);
    return result;
  }
  /// Its transpose as B: rows are the features first .. + 15, columns the rows first_row .. + 15.
  __device__ FragmentB2 b_of_rows(int first_row, int first) const {
    const int lane = threadIdx.x % kWarp;
    FragmentB2 result;
    ptx::load_matrices<false>(result.pair,
                              &row[first_row + lane % 8 + lane / 16 * 8][first + lane / 8 % 2 * 8]);
    return result;
  }
  /// As B: rows first_row .. + 15, columns are the features first .. + 15.
  __device__ FragmentB2 b(int first_row, int first) const {
    const int lane = threadIdx.x % kWarp;
    FragmentB2 result;
    ptx::load_matrices<true>(result.pair, &row[first_row + lane % 16][first + lane / 16 * 8]);
    return result;
  }
};

/// Ends a group of asynchronous copies.
__device__ inline void commit_copies() { ptx::commit_copies(); }
/// Waits until at most kPending of this thread's groups are under way.
template <int kPending>
__device__ void wait_for_copies() {
  ptx::wait_for_copies<kPending>();
}

}  // namespace mirabelle::backend
