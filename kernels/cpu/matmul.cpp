#include "mirabelle/kernels/matmul.h"

#include <dnnl.h>

#include <algorithm>

#include "cpu/wide_memory.h"

namespace mirabelle::backend {
namespace {

/// Some matrices, one after the other, or the transposes of those that are stored.
template <typename T>
struct Operand {
  const T* data;
  bool transposed;
  int64_t row_stride;         // of a stored matrix
  int64_t matrix_stride = 0;  // from one to the next

  Operand matrix(int64_t i) const { return {data + i * matrix_stride, transposed, row_stride}; }
  const T* at(int64_t row, int64_t column) const {
    return transposed ? data + column * row_stride + row : data + row * row_stride + column;
  }
};

/// Calls tile(matrix, first_row, num_rows, first_column, num_columns) for all tiles of `count`
/// [m, n] matrices, in parallel. The tiles depend on m and n only.
template <typename Tile>
void for_each_tile(int64_t count, int64_t m, int64_t n, int64_t edge, Tile tile) {
  const int64_t tile_rows = (m + edge - 1) / edge, tile_columns = (n + edge - 1) / edge;
#pragma omp parallel for schedule(dynamic)
  for (int64_t t = 0; t < count * tile_rows * tile_columns; ++t) {
    const int64_t column = t % tile_columns * edge, row = t / tile_columns % tile_rows * edge;
    tile(t / tile_columns / tile_rows, row, std::min(edge, m - row), column,
         std::min(edge, n - column));
  }
}

constexpr int64_t kMaxEdge = 256;

/// The same with tiles for oneDNN, whose status `tile` returns.
// Inside a parallel region oneDNN works on one thread. Left to share out the work itself it would
// split the inner dimension for some shapes and numbers of threads, and the bits of the result
// would depend on them. Tiles of 128 and more cost nothing against one large product.
template <typename Tile>
void multiply_tiles(int64_t count, int64_t m, int64_t n, Tile tile) {
  int64_t edge = kMaxEdge;
  while (edge > 64 && m * n < 16 * edge * edge) edge /= 2;
  dnnl_status_t status = dnnl_success;
  for_each_tile(count, m, n, edge,
                [&](int64_t matrix, int64_t row, int64_t rows, int64_t column, int64_t columns) {
                  const dnnl_status_t tile_status = tile(matrix, row, rows, column, columns);
                  if (tile_status != dnnl_success) {
#pragma omp atomic write
                    status = tile_status;
                  }
                });
  MIRABELLE_CHECK(status == dnnl_success, "oneDNN's sgemm of a [", m, ", ", n,
                  "] product failed with status ", static_cast<int>(status));
}

/// out [m, n] = a b, or += a b.
dnnl_status_t sgemm(float* out, int64_t row_stride, const Operand<float>& a,
                    const Operand<float>& b, bool accumulate, int64_t m, int64_t n, int64_t k) {
  return dnnl_sgemm(a.transposed ? 'T' : 'N', b.transposed ? 'T' : 'N', m, n, k, 1.0f, a.data,
                    a.row_stride, b.data, b.row_stride, accumulate ? 1.0f : 0.0f, out, row_stride);
}

void multiply(float* out, const Operand<float>& a, const Operand<float>& b, bool accumulate,
              int64_t count, int64_t m, int64_t n, int64_t k) {
  multiply_tiles(count, m, n,
                 [&](int64_t matrix, int64_t row, int64_t rows, int64_t column, int64_t columns) {
                   return sgemm(out + (matrix * m + row) * n + column, n,
                                {a.matrix(matrix).at(row, 0), a.transposed, a.row_stride},
                                {b.matrix(matrix).at(0, column), b.transposed, b.row_stride},
                                accumulate, rows, columns, k);
                 });
}

/// Rows [row, row + rows) and columns [column, column + columns) of x, as float32 in `memory`.
Operand<float> widened(float* memory, const Operand<BFloat16>& x, int64_t row, int64_t rows,
                       int64_t column, int64_t columns) {
  if (x.transposed) std::swap(rows, columns);  // now those of the stored matrix
  for (int64_t i = 0; i < rows; ++i) {
    std::copy_n(x.at(row, column) + i * x.row_stride, columns, memory + i * columns);
  }
  return {memory, x.transposed, columns};
}

// Of bfloat16 a part of the inner dimension after the other is converted and multiplied in float32,
// which keeps the memory small. The sum is rounded when it is complete.
template <typename Out>
void multiply(Out* out, const Operand<BFloat16>& a, const Operand<BFloat16>& b, bool accumulate,
              int64_t count, int64_t m, int64_t n, int64_t k) {
  constexpr int64_t kDepth = 512;
  multiply_tiles(
      count, m, n, [&](int64_t matrix, int64_t row, int64_t rows, int64_t column, int64_t columns) {
        float* sums = wide_memory(kMaxEdge * (kMaxEdge + 2 * kDepth));
        float* a_part = sums + kMaxEdge * kMaxEdge;
        float* b_part = a_part + kMaxEdge * kDepth;
        for (int64_t first = 0; first < k; first += kDepth) {
          const int64_t depth = std::min(kDepth, k - first);
          const dnnl_status_t status =
              sgemm(sums, columns, widened(a_part, a.matrix(matrix), row, rows, first, depth),
                    widened(b_part, b.matrix(matrix), first, depth, column, columns), first > 0,
                    rows, columns, depth);
          if (status != dnnl_success) return status;
        }
        for (int64_t i = 0; i < rows; ++i) {
          Out* target = out + (matrix * m + row + i) * n + column;
          const float* sum = sums + i * columns;
#pragma omp simd
          for (int64_t j = 0; j < columns; ++j) {
            target[j] = static_cast<Out>(accumulate ? target[j] + sum[j] : sum[j]);
          }
        }
        return dnnl_success;
      });
}

// float64 is for gradient checks: one plain blocked loop for all four kinds of transposition.
void multiply(double* out, const Operand<double>& a, const Operand<double>& b, bool accumulate,
              int64_t count, int64_t m, int64_t n, int64_t k) {
  constexpr int64_t kEdge = 48;
  for_each_tile(count, m, n, kEdge,
                [&](int64_t matrix, int64_t row, int64_t rows, int64_t column, int64_t columns) {
                  const Operand<double> left = a.matrix(matrix), right = b.matrix(matrix);
                  double sums[kEdge][kEdge] = {};
                  double b_block[kEdge][kEdge] = {};
                  for (int64_t first = 0; first < k; first += kEdge) {
                    const int64_t inner = std::min(kEdge, k - first);
                    for (int64_t p = 0; p < inner; ++p) {
                      for (int64_t j = 0; j < columns; ++j)
                        b_block[p][j] = *right.at(first + p, column + j);
                    }
                    for (int64_t i = 0; i < rows; ++i) {
                      for (int64_t p = 0; p < inner; ++p) {
                        const double a_ip = *left.at(row + i, first + p);
#pragma omp simd
                        for (int64_t j = 0; j < kEdge; ++j) sums[i][j] += a_ip * b_block[p][j];
                      }
                    }
                  }
                  for (int64_t i = 0; i < rows; ++i) {
                    double* target = out + (matrix * m + row + i) * n + column;
                    for (int64_t j = 0; j < columns; ++j) {
                      target[j] = accumulate ? target[j] + sums[i][j] : sums[i][j];
                    }
                  }
                });
}

}  // namespace

template <Device D, typename T, typename Out>
void matmul(Out* out, const T* a, bool transpose_a, const T* b, bool transpose_b, bool accumulate,
            int64_t count, int64_t m, int64_t n, int64_t k, const Stream&) {
  if (count == 0 || m == 0 || n == 0) return;
  if (k == 0) {
    if (!accumulate) std::fill(out, out + count * m * n, Out{0});
    return;
  }
  multiply(out, Operand<T>{a, transpose_a, transpose_a ? m : k, m * k},
           Operand<T>{b, transpose_b, transpose_b ? k : n, k * n}, accumulate, count, m, n, k);
}

#define INSTANTIATE(T, Out)                                                                       \
  template void matmul<Device::kCpu, T, Out>(Out*, const T*, bool, const T*, bool, bool, int64_t, \
                                             int64_t, int64_t, int64_t, const Stream&);
INSTANTIATE(float, float)
INSTANTIATE(double, double)
INSTANTIATE(BFloat16, BFloat16)
INSTANTIATE(BFloat16, float)
#undef INSTANTIATE

}  // namespace mirabelle::backend
