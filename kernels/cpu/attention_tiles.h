#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "cpu/vector_math.h"

namespace mirabelle::backend {

// Attention is computed on tiles: a block of keys and values is copied next to each other once (and
// the keys transposed, so that a vector holds one feature of neighbouring keys), then strips of
// queries meet it. Tiles live on the stack of the thread. Their rows have kDim features, head_dim
// rounded up to one of a few sizes that the compiler knows; what is beyond head_dim is zero. They
// have the wide dtype W of the tensors' T: rows are converted as they are copied.
inline constexpr int64_t kBlock = 128;  // tokens in a block of keys or queries
inline constexpr int64_t kStrip =
    32;  // queries at a time; 32 x 128 float32 scores fit the L1 cache
template <typename T>
inline constexpr int64_t kLanes = 64 /
                                  sizeof(T);  // numbers in a cache line, or an AVX-512 register
#ifdef __AVX512F__
inline constexpr int64_t kRows = 8;  // rows of sums that the registers hold; divides kStrip
#else
inline constexpr int64_t kRows = 4;
#endif

/// Which keys of a block a strip sees: row r the first sees(r) of them.
struct Mask {
  int64_t num_keys;
  int64_t seen_by_first_row;  // at least 1; every later row sees one more
  int64_t sees(int64_t row) const { return std::min(num_keys, seen_by_first_row + row); }
  /// The keys that any row of the group [row, row + kRows) sees.
  int64_t group_sees(int64_t row) const { return sees(row + kRows - 1); }
};

template <typename T>
int64_t round_up_to_lanes(int64_t n) {
  return (n + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

/// Sum and maximum of n numbers, n a power of two, in a fixed order that vectors can follow. (GCC
/// stops inlining by itself in a file with as many instances as this one's user.)
template <int64_t n, typename T>
[[gnu::always_inline]] inline T sum_of(const T* x) {
  if constexpr (n == 1) {
    return x[0];
  } else {
    T half[n / 2];
    for (int64_t i = 0; i < n / 2; ++i) half[i] = x[i] + x[i + n / 2];
    return sum_of<n / 2>(half);
  }
}

template <int64_t n, typename T>
[[gnu::always_inline]] inline T largest_of(const T* x) {
  if constexpr (n == 1) {
    return x[0];
  } else {
    T half[n / 2];
    for (int64_t i = 0; i < n / 2; ++i) half[i] = x[i] > x[i + n / 2] ? x[i] : x[i + n / 2];
    return largest_of<n / 2>(half);
  }
}

template <typename W, typename T>
[[gnu::always_inline]] inline W dot(const W* a, const T* b, int64_t n) {
  W sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

/// c [kRows, kLanes] = a b, or += a b;  a(row, d) = a[row * kRowStride + d * kDepthStride].
/// The sums stay in registers over the whole depth.
template <int64_t kRowStride, int64_t kDepthStride, typename T>
[[gnu::always_inline]] inline void multiply_tile(T* c, int64_t c_stride, const T* a, const T* b,
                                                 int64_t b_stride, int64_t depth, bool accumulate) {
  T sum[kRows][kLanes<T>];
  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t j = 0; j < kLanes<T>; ++j) {
      sum[row][j] = accumulate ? c[row * c_stride + j] : T{0};
    }
  }
  for (int64_t d = 0; d < depth; ++d) {
#pragma GCC unroll 8
    for (int64_t row = 0; row < kRows; ++row) {
      const T x = a[row * kRowStride + d * kDepthStride];
#pragma omp simd
      for (int64_t j = 0; j < kLanes<T>; ++j) sum[row][j] += x * b[d * b_stride + j];
    }
  }
  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t j = 0; j < kLanes<T>; ++j) c[row * c_stride + j] = sum[row][j];
  }
}

/// tile [num_rows rounded up to kRows, kDim] = factor * rows, filled up with zeros.
template <int64_t kDim, typename W, typename T>
void copy_rows(W* tile, const T* rows, int64_t row_stride, int64_t num_rows, int64_t head_dim,
               W factor) {
  for (int64_t row = 0; row < num_rows; ++row) {
    const T* from = rows + row * row_stride;
    W* to = tile + row * kDim;
#pragma omp simd
    for (int64_t c = 0; c < head_dim; ++c) to[c] = factor * from[c];
    std::fill(to + head_dim, to + kDim, W{0});
  }
  const int64_t padded = (num_rows + kRows - 1) / kRows * kRows;
  std::fill(tile + num_rows * kDim, tile + padded * kDim, W{0});
}

/// panels [num_rows / kLanes rounded up, kDim, kLanes]: kLanes rows at a time, transposed.
template <int64_t kDim, typename W, typename T>
void transpose_rows(W* panels, const T* rows, int64_t row_stride, int64_t num_rows,
                    int64_t head_dim) {
  constexpr int64_t L = kLanes<W>;
  static const T zeros[kDim] = {};
  for (int64_t first = 0; first < num_rows; first += L, panels += kDim * L) {
    const T* row[L];
    for (int64_t i = 0; i < L; ++i) {
      row[i] = first + i < num_rows ? rows + (first + i) * row_stride : zeros;
    }
    // The stores of one c follow those of another without gaps, so this becomes register shuffles.
#pragma omp simd
    for (int64_t c = 0; c < head_dim; ++c) {
#pragma GCC unroll 16
      for (int64_t i = 0; i < L; ++i) panels[c * L + i] = row[i][c];
    }
    std::fill(panels + head_dim * L, panels + kDim * L, W{0});
  }
}

/// products [num_rows, kBlock] = rows [num_rows, kDim] panels, as far as the mask sees.
template <int64_t kDim, typename T>
void multiply_panels(T* products, const T* rows, const T* panels, int64_t num_rows,
                     const Mask& mask) {
  for (int64_t row = 0; row < num_rows; row += kRows) {
    const int64_t num_keys = mask.group_sees(row);
    for (int64_t key = 0; key < num_keys; key += kLanes<T>) {
      multiply_tile<kDim, 1>(products + row * kBlock + key, kBlock, rows + row * kDim,
                             panels + key * kDim, kLanes<T>, kDim, false);
    }
  }
}

/// sums [num_rows, kDim] += weights [num_rows, kBlock] values [keys, kDim].
template <int64_t kDim, typename T>
void add_weighted_values(T* sums, const T* weights, const T* values, int64_t num_rows,
                         const Mask& mask) {
  for (int64_t row = 0; row < num_rows; row += kRows) {
    for (int64_t c = 0; c < kDim; c += kLanes<T>) {
      multiply_tile<kBlock, 1>(sums + row * kDim + c, kDim, weights + row * kBlock, values + c,
                               kDim, mask.group_sees(row), true);
    }
  }
}

/// sums [keys, kDim] += weights^T rows: what every key receives from the rows that see it.
template <int64_t kDim, typename T>
void add_to_seen_keys(T* sums, const T* weights, const T* rows, int64_t num_rows,
                      const Mask& mask) {
  const int64_t num_keys = mask.sees(num_rows - 1);
  for (int64_t key = 0; key < num_keys; key += kRows) {
    const int64_t first = std::max<int64_t>(0, key + 1 - mask.seen_by_first_row);
    for (int64_t c = 0; c < kDim; c += kLanes<T>) {
      multiply_tile<1, kBlock>(sums + key * kDim + c, kDim, weights + first * kBlock + key,
                               rows + first * kDim + c, kDim, num_rows - first, true);
    }
  }
}

}  // namespace mirabelle::backend
