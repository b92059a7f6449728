#pragma once

#include "cuda/mma.cuh"

// What the attention kernels on tensor cores share. A block of four warps takes 64 rows; a warp has
// 16 of them. The other side passes by in tiles, of which the next one is copied while this one is
// used.
namespace mirabelle::backend {

inline constexpr int kMmaWarps = 4;
inline constexpr int kMmaThreads = kMmaWarps * kWarp;
inline constexpr int kMmaRows = 16 * kMmaWarps;
inline constexpr int kMmaKeys = 64;  // of a tile that queries meet
inline constexpr float kLog2E = 1.44269504088896340736f;

/// The first of a warp's rows in the block's tile, and a lane's rows and columns in a fragment C.
__device__ inline int warp_row() { return static_cast<int>(threadIdx.x) / kWarp * 16; }
__device__ inline int row_in_c(int i) { return threadIdx.x % kWarp / 4 + i / 2 * 8; }
__device__ inline int column_in_c(int i) { return threadIdx.x % 4 * 2 + i % 2; }

/// The four lanes that share a row.
template <typename Op>
__device__ inline float quad_reduce(float x, Op op) {
  x = op(x, __shfl_xor_sync(kAllLanes, x, 1));
  return op(x, __shfl_xor_sync(kAllLanes, x, 2));
}

/// Writes a warp's 16 rows of kDim features, as far as the tile has them: row r to row_at(r).
template <int kDim, typename RowAt>
__device__ inline void store_rows(RowAt row_at, int count, const FragmentC (&c)[kDim / 8],
                                  const float (&factor)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = warp_row() + row_in_c(2 * r);
    if (row >= count) continue;
    auto* to = row_at(row) + column_in_c(0);
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      store_pair(to + n * 8, factor[r] * c[n].value[2 * r], factor[r] * c[n].value[2 * r + 1]);
    }
  }
}
/// Row r to rows + r * stride.
template <int kDim>
__device__ inline void store_rows(BFloat16* rows, int64_t stride, int count,
                                  const FragmentC (&c)[kDim / 8], const float (&factor)[2]) {
  store_rows<kDim>([&](int row) { return rows + row * stride; }, count, c, factor);
}

/// Calls body.operator()<kDim>() for the head sizes that have kernels.
template <typename Body>
void dispatch_mma_head_dim(int head_dim, Body&& body) {
  if (head_dim == 32) return body.template operator()<32>();
  if (head_dim == 64) return body.template operator()<64>();
  if (head_dim == 96) return body.template operator()<96>();
  return body.template operator()<128>();
}

template <int kDim>
struct MmaSoftmaxMemory {
  MmaTile<kMmaRows, kDim> queries;
  MmaTile<kMmaKeys, kDim> keys[2], values[2];
};

/// The softmax of the block's rows over the keys that they met so far:
/// out = sum of 2^(score - maximum) * value, sum = sum of 2^(score - maximum), with scores times
/// log2(e). A lane has rows g and g + 8 of its warp; of `sum` its share, until add_up_sum().
template <int kDim>
struct MmaSoftmax {
  FragmentC out[kDim / 8];
  float maximum[2] = {-kInfinity, -kInfinity}, sum[2] = {};

  /// Meets the keys [begin, end), if any; token i has its key at keys + i * stride. The copies of
  /// the queries must be under way. Row r sees all keys but those of the last tile for which
  /// sees(r, key) is false; it must see one of that tile. All threads of the block call it.
  template <typename Sees>
  __device__ void add_keys(MmaSoftmaxMemory<kDim>& shared, const BFloat16* keys,
                           const BFloat16* values, int64_t stride, int begin, int end, float scale,
                           Sees sees) {
    const auto load = [&](int first, int buffer) {
      const int count = min(kMmaKeys, end - first);
      shared.keys[buffer].template load<kMmaThreads>(keys + first * stride, stride, count);
      shared.values[buffer].template load<kMmaThreads>(values + first * stride, stride, count);
      commit_copies();
    };
    if (begin < end) load(begin, 0);
    int buffer = 0;
    for (int first = begin; first < end; first += kMmaKeys) {
      const bool is_last = first + kMmaKeys >= end;
      if (!is_last) load(first + kMmaKeys, 1 - buffer);
      is_last ? wait_for_copies<0>() : wait_for_copies<1>();
      __syncthreads();
      add_tile(shared.queries, shared.keys[buffer], shared.values[buffer], scale,
               [&](int row, int column) { return !is_last || sees(row, first + column); });
      __syncthreads();  // before the next copies overwrite this buffer
      buffer = 1 - buffer;
    }
  }

  /// Meets one tile, of which row r sees the keys with sees(r, column), at least one.
  template <typename Sees>
  __device__ void add_tile(const MmaTile<kMmaRows, kDim>& queries,
                           const MmaTile<kMmaKeys, kDim>& keys,
                           const MmaTile<kMmaKeys, kDim>& values, float scale, Sees sees) {
    FragmentC score[kMmaKeys / 8];
#pragma unroll
    for (int d = 0; d < kDim; d += 16) {
      const FragmentA query = queries.a(warp_row(), d);
#pragma unroll
      for (int key = 0; key < kMmaKeys; key += 16) {
        multiply_add(score[key / 8], score[key / 8 + 1], query, keys.b_of_rows(key, d));
      }
    }
    float largest[2] = {maximum[0], maximum[1]};
#pragma unroll
    for (int n = 0; n < kMmaKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& s = score[n].value[i];
        s *= scale * kLog2E;
        if (!sees(warp_row() + row_in_c(i), n * 8 + column_in_c(i))) s = -kInfinity;
        largest[i / 2] = fmaxf(largest[i / 2], s);
      }
    }
    float shrink[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) shrink[r] = raise_maximum(r, quad_reduce(largest[r], Max()));
#pragma unroll
    for (int n = 0; n < kMmaKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        score[n].value[i] = exp2f(score[n].value[i] - maximum[i / 2]);
        sum[i / 2] += score[n].value[i];
      }
    }
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[n].value[i] *= shrink[i / 2];
    }
#pragma unroll
    for (int key = 0; key < kMmaKeys; key += 16) {
      const FragmentA weights = as_a(score[key / 8], score[key / 8 + 1]);
#pragma unroll
      for (int d = 0; d < kDim; d += 16) {
        multiply_add(out[d / 8], out[d / 8 + 1], weights, values.b(key, d));
      }
    }
  }

  /// Each row meets one key more, which only it sees: the lane's rows those at key[0] and key[1],
  /// with the values `to_value` elements behind. In float32.
  __device__ void add_own_key(const MmaTile<kMmaRows, kDim>& queries,
                              const BFloat16* const (&key)[2], int64_t to_value, float scale) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const BFloat16* query = queries.row[warp_row() + row_in_c(2 * r)];
      float score = 0;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {  // the quad shares the features like a row of C
        const int d = n * 8 + column_in_c(0);
        const float2 q = load_pair(query + d), k = load_pair(key[r] + d);
        score += q.x * k.x + q.y * k.y;
      }
      score = quad_reduce(score, Add()) * scale * kLog2E;
      const float shrink = raise_maximum(r, fmaxf(maximum[r], score));
      const float weight = exp2f(score - maximum[r]);
      if (threadIdx.x % 4 == 0) sum[r] += weight;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        const float2 v = load_pair(key[r] + to_value + n * 8 + column_in_c(0));
        float &x = out[n].value[2 * r], &y = out[n].value[2 * r + 1];
        x = x * shrink + weight * v.x;
        y = y * shrink + weight * v.y;
      }
    }
  }

  __device__ void add_up_sum() {
    sum[0] = quad_reduce(sum[0], Add());
    sum[1] = quad_reduce(sum[1], Add());
  }

 private:
  /// Returns the factor for what was summed before; `sum` has it already.
  __device__ float raise_maximum(int r, float new_maximum) {
    const float shrink = exp2f(maximum[r] - new_maximum);
    maximum[r] = new_maximum;
    sum[r] *= shrink;
    return shrink;
  }
};

}  // namespace mirabelle::backend
