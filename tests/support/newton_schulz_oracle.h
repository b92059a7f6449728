#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace mirabelle::testing {

/// A row-major matrix of doubles.
struct Matrix {
  int64_t rows, columns;
  std::vector<double> values = std::vector<double>(rows * columns);

  double& at(int64_t i, int64_t j) { return values[i * columns + j]; }
  double at(int64_t i, int64_t j) const { return values[i * columns + j]; }
};

inline Matrix transposed(const Matrix& x) {
  Matrix result{x.columns, x.rows};
  for (int64_t i = 0; i < x.rows; ++i) {
    for (int64_t j = 0; j < x.columns; ++j) result.at(j, i) = x.at(i, j);
  }
  return result;
}

inline Matrix product(const Matrix& a, const Matrix& b) {
  Matrix result{a.rows, b.columns};
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t p = 0; p < a.columns; ++p) {
      for (int64_t j = 0; j < b.columns; ++j) result.at(i, j) += a.at(i, p) * b.at(p, j);
    }
  }
  return result;
}

/// What Muon makes of a matrix: X / |X|, then five times X = a X + b A X + c A A X with A = X X^T,
/// whatever the shape is.
inline Matrix newton_schulz_oracle(Matrix x) {
  double squares = 0;
  for (const double value : x.values) squares += value * value;
  for (double& value : x.values) value /= std::sqrt(squares);
  for (int i = 0; i < 5; ++i) {
    const Matrix gram = product(x, transposed(x));
    const Matrix once = product(gram, x), twice = product(gram, once);
    for (size_t j = 0; j < x.values.size(); ++j) {
      x.values[j] = 3.4445 * x.values[j] - 4.7750 * once.values[j] + 2.0315 * twice.values[j];
    }
  }
  return x;
}

}  // namespace mirabelle::testing
