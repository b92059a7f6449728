#include "mirabelle/tokenizer/co_occurrence_embedding.h"

#define EIGEN_DONT_PARALLELIZE
#include <Eigen/Eigenvalues>
#include <Eigen/SparseCore>
#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <tuple>

#include "mirabelle/core/error.h"
#include "mirabelle/core/random.h"

namespace mirabelle {
namespace {

using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Sparse = Eigen::SparseMatrix<float, Eigen::RowMajor, int64_t>;
using Square = Eigen::MatrixXd;

constexpr int64_t kSpareColumns = 16;  // make the last wanted columns converge faster
constexpr int kIterations = 12;
constexpr int64_t kNumChunks = 64;  // of rows: what a thread takes, so that threads change no bits

/// body(chunk, first row, number of rows)
template <typename Body>
void for_each_chunk(int64_t num_rows, const Body& body) {
#pragma omp parallel for schedule(dynamic)
  for (int64_t chunk = 0; chunk < kNumChunks; ++chunk) {
    const int64_t begin = num_rows * chunk / kNumChunks;
    body(chunk, begin, num_rows * (chunk + 1) / kNumChunks - begin);
  }
}

struct Entry {
  int32_t column;
  float weight;
};

/// The pairs that name an item as the partner, of all items one after the other, each item's
/// ascending; those of item i begin at begins[i].
std::vector<Entry> lists_that_name(const CoOccurrences& pairs, std::vector<int64_t>& begins) {
  const int64_t num_items = static_cast<int64_t>(pairs.offsets.size()) - 1;
  begins.assign(num_items + 1, 0);
  for (const int32_t partner : pairs.partners) ++begins[partner + 1];
  std::partial_sum(begins.begin(), begins.end(), begins.begin());
  std::vector<int64_t> next = begins;
  std::vector<Entry> entries(pairs.partners.size());
  for (int64_t item = 0; item < num_items; ++item) {
    for (int64_t i = pairs.offsets[item]; i < pairs.offsets[item + 1]; ++i) {
      entries[next[pairs.partners[i]]++] = {static_cast<int32_t>(item), pairs.weights[i]};
    }
  }
  return entries;
}

/// The larger of w_ij in both items' lists, symmetric.
Sparse weights_of(const CoOccurrences& pairs) {
  const int64_t num_items = static_cast<int64_t>(pairs.offsets.size()) - 1;
  std::vector<int64_t> begins;
  const std::vector<Entry> named_by = lists_that_name(pairs, begins);
  Sparse weights(num_items, num_items);
  weights.reserve(2 * static_cast<int64_t>(pairs.partners.size()));
  std::vector<Entry> row;
  for (int64_t item = 0; item < num_items; ++item) {
    row.assign(named_by.begin() + begins[item], named_by.begin() + begins[item + 1]);
    for (int64_t i = pairs.offsets[item]; i < pairs.offsets[item + 1]; ++i) {
      row.push_back({pairs.partners[i], pairs.weights[i]});
    }
    std::ranges::sort(row, [](const Entry& a, const Entry& b) {
      return std::tie(a.column, b.weight) < std::tie(b.column, a.weight);  // heavier first
    });
    weights.startVec(item);
    for (size_t i = 0; i < row.size(); ++i) {
      if (i > 0 && row[i].column == row[i - 1].column) continue;
      weights.insertBack(item, row[i].column) = row[i].weight;
    }
  }
  weights.finalize();
  return weights;
}

/// Replaces weights by positive pointwise mutual information.
void to_mutual_information(Sparse& matrix) {
  const int64_t num_items = matrix.rows();
  std::vector<double> share(num_items);
  double total = 0, smoothed_total = 0;
  for (int64_t i = 0; i < num_items; ++i) {
    for (Sparse::InnerIterator entry(matrix, i); entry; ++entry) share[i] += entry.value();
    total += share[i];
    share[i] = std::pow(share[i], 0.75);
    smoothed_total += share[i];
  }
  for (int64_t i = 0; i < num_items; ++i) {
    for (Sparse::InnerIterator entry(matrix, i); entry; ++entry) {
      const double expected =
          share[i] * share[entry.col()] / (smoothed_total * smoothed_total) * total;
      entry.valueRef() = static_cast<float>(std::max(0.0, std::log(entry.value() / expected)));
    }
  }
}

Rows random_start(int64_t num_rows, int64_t num_columns, int64_t seed) {
  const uint64_t key = random_key(static_cast<uint64_t>(seed), "co-occurrence start");
  Rows start(num_rows, num_columns);
  for_each_chunk(num_rows, [&](int64_t, int64_t begin, int64_t count) {
    for (int64_t i = begin * num_columns; i < (begin + count) * num_columns; ++i) {
      start.data()[i] = static_cast<float>(random_normal(key, i));
    }
  });
  return start;
}

Rows product(const Sparse& matrix, const Rows& x) {
  Rows result(x.rows(), x.cols());
  for_each_chunk(x.rows(), [&](int64_t, int64_t begin, int64_t count) {
    result.middleRows(begin, count) = matrix.middleRows(begin, count) * x;
  });
  return result;
}

/// a^T b
Square inner_products(const Rows& a, const Rows& b) {
  std::array<Square, kNumChunks> parts;
  for_each_chunk(a.rows(), [&](int64_t chunk, int64_t begin, int64_t count) {
    parts[chunk] = a.middleRows(begin, count).cast<double>().transpose() *
                   b.middleRows(begin, count).cast<double>();
  });
  Square sum = parts[0];
  for (int64_t chunk = 1; chunk < kNumChunks; ++chunk) sum += parts[chunk];
  return sum;
}

/// x <- x rotation
void rotate(Rows& x, const Square& rotation) {
  const Eigen::MatrixXf factor = rotation.cast<float>();
  for_each_chunk(x.rows(), [&](int64_t, int64_t begin, int64_t count) {
    x.middleRows(begin, count) = (x.middleRows(begin, count) * factor).eval();
  });
}

/// Makes the columns orthonormal; those that depend on others become zeros.
void orthonormalize(Rows& x) {
  const Eigen::SelfAdjointEigenSolver<Square> gram(inner_products(x, x));
  const Eigen::VectorXd& squares = gram.eigenvalues();
  const double smallest = 1e-10 * std::max(squares.maxCoeff(), 1e-300);
  Square scaled = gram.eigenvectors();
  for (int64_t j = 0; j < scaled.cols(); ++j) {
    scaled.col(j) *= squares[j] > smallest ? 1 / std::sqrt(squares[j]) : 0.0;
  }
  rotate(x, scaled);
}

/// Of a symmetric matrix: `dim` leading singular vectors times the roots of their singular values.
Rows leading_vectors(const Sparse& matrix, int64_t dim, int64_t seed) {
  Rows basis = random_start(matrix.rows(), dim + kSpareColumns, seed);
  for (int iteration = 0; iteration < kIterations; ++iteration) {
    basis = product(matrix, basis);
    orthonormalize(basis);
  }
  const Square projected = inner_products(basis, product(matrix, basis));
  const Eigen::SelfAdjointEigenSolver<Square> solved(0.5 * (projected + projected.transpose()));
  std::vector<int64_t> order(basis.cols());
  for (size_t j = 0; j < order.size(); ++j) order[j] = static_cast<int64_t>(j);
  const Eigen::VectorXd magnitudes = solved.eigenvalues().cwiseAbs();
  std::ranges::stable_sort(order,
                           [&](int64_t a, int64_t b) { return magnitudes[a] > magnitudes[b]; });
  Square rotation(basis.cols(), dim);
  for (int64_t j = 0; j < dim; ++j) {
    rotation.col(j) = solved.eigenvectors().col(order[j]) * std::sqrt(magnitudes[order[j]]);
  }
  Rows result(basis.rows(), dim);
  const Eigen::MatrixXf factor = rotation.cast<float>();
  for_each_chunk(basis.rows(), [&](int64_t, int64_t begin, int64_t count) {
    result.middleRows(begin, count) = basis.middleRows(begin, count) * factor;
  });
  return result;
}

void normalize_rows(Rows& x) {
  for (int64_t i = 0; i < x.rows(); ++i) {
    const float length = x.row(i).norm();
    if (length > 1e-6F) {
      x.row(i) /= length;
    } else {
      x.row(i).setZero();  // what rounding left of an item without partners
    }
  }
}

}  // namespace

std::vector<float> co_occurrence_embedding(const CoOccurrences& pairs, int64_t dim, int64_t seed,
                                           const Communicator& communicator) {
  MIRABELLE_CHECK(dim > 0, "wanted a positive number of columns, got ", dim);
  const int64_t num_items = static_cast<int64_t>(pairs.offsets.size()) - 1;
  std::vector<float> values(num_items * dim);
  if (communicator.rank() == 0 && num_items > 0) {
    Sparse matrix = weights_of(pairs);
    to_mutual_information(matrix);
    Rows embedding = leading_vectors(matrix, dim, seed);
    normalize_rows(embedding);
    std::copy_n(embedding.data(), embedding.size(), values.data());
  }
  communicator.broadcast(view_of(values), 0, Stream());
  return values;
}

}  // namespace mirabelle
