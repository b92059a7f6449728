#include "mirabelle/tokenizer/co_occurrence_embedding.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "mirabelle/core/random.h"

namespace mirabelle {
namespace {

using Matrix = std::vector<std::vector<double>>;

class CoOccurrenceEmbeddingTest : public testing::Test {
 protected:
  std::vector<float> embed(const CoOccurrences& pairs, int64_t dim, int64_t seed = 0) {
    return co_occurrence_embedding(pairs, dim, seed, *world_);
  }
  const std::unique_ptr<Communicator> world_ = make_self_communicator();
};

/// Lists of the positive entries of a matrix of weights.
CoOccurrences pairs_of(const Matrix& weights) {
  CoOccurrences pairs{{0}, {}, {}};
  for (const std::vector<double>& row : weights) {
    for (size_t j = 0; j < row.size(); ++j) {
      if (row[j] == 0) continue;
      pairs.partners.push_back(static_cast<int32_t>(j));
      pairs.weights.push_back(static_cast<float>(row[j]));
    }
    pairs.offsets.push_back(static_cast<int64_t>(pairs.partners.size()));
  }
  return pairs;
}

/// Whole numbers, so that they are the same in float32; zero where items never meet.
Matrix random_weights(size_t n, uint64_t key) {
  Random random(key);
  Matrix weights(n, std::vector<double>(n));
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j < i; ++j) {
      weights[i][j] = weights[j][i] = random.uniform() < 0.3 ? 1.0 + random.below(9) : 0.0;
    }
  }
  return weights;
}

Matrix mutual_information(const Matrix& weights) {
  const size_t n = weights.size();
  std::vector<double> margin(n);
  double total = 0, smoothed = 0;
  for (size_t i = 0; i < n; ++i) {
    margin[i] = std::accumulate(weights[i].begin(), weights[i].end(), 0.0);
    total += margin[i];
    smoothed += std::pow(margin[i], 0.75);
  }
  Matrix result(n, std::vector<double>(n));
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j < n; ++j) {
      if (weights[i][j] == 0) continue;
      const double expected =
          std::pow(margin[i], 0.75) / smoothed * std::pow(margin[j], 0.75) / smoothed;
      result[i][j] = std::max(0.0, std::log(weights[i][j] / total / expected));
    }
  }
  return result;
}

/// The leading eigenvectors of M^2, one by one by power iteration, times the roots of M's singular
/// values: columns [dim][n].
Matrix leading_columns(const Matrix& matrix, size_t dim) {
  const size_t n = matrix.size();
  const auto multiply = [&](const std::vector<double>& x) {
    std::vector<double> y(n);
    for (size_t i = 0; i < n; ++i) {
      y[i] = std::inner_product(x.begin(), x.end(), matrix[i].begin(), 0.0);
    }
    return y;
  };
  Matrix found, columns;
  for (size_t column = 0; column < dim; ++column) {
    std::vector<double> x(n);
    for (size_t i = 0; i < n; ++i) x[i] = std::sin(static_cast<double>(7 * i + column + 1));
    double length = 0;
    for (int iteration = 0; iteration < 20000; ++iteration) {
      x = multiply(multiply(x));
      for (const std::vector<double>& other : found) {
        const double share = std::inner_product(x.begin(), x.end(), other.begin(), 0.0);
        for (size_t i = 0; i < n; ++i) x[i] -= share * other[i];
      }
      length = std::sqrt(std::inner_product(x.begin(), x.end(), x.begin(), 0.0));
      for (double& value : x) value /= length;
    }
    found.push_back(x);
    for (double& value : x) value *= std::pow(length, 0.25);  // length = singular value squared
    columns.push_back(x);
  }
  return columns;
}

double dot(const float* a, const float* b, int64_t dim) {
  return std::inner_product(a, a + dim, b, 0.0);
}

TEST_F(CoOccurrenceEmbeddingTest, RowsAreLeadingSingularVectorsOfTheMutualInformation) {
  constexpr int64_t kItems = 37, kDim = 4;
  const Matrix weights = random_weights(kItems, 5);
  const Matrix columns = leading_columns(mutual_information(weights), kDim);
  const std::vector<float> rows = embed(pairs_of(weights), kDim);
  ASSERT_EQ(rows.size(), kItems * kDim);
  const auto cosine = [&](int64_t i, int64_t j) {
    double product = 0, square_i = 0, square_j = 0;
    for (const std::vector<double>& column : columns) {
      product += column[i] * column[j];
      square_i += column[i] * column[i];
      square_j += column[j] * column[j];
    }
    return product / std::sqrt(square_i * square_j);
  };
  for (int64_t i = 0; i < kItems; ++i) {
    for (int64_t j = 0; j < kItems; ++j) {
      EXPECT_NEAR(dot(&rows[i * kDim], &rows[j * kDim], kDim), cosine(i, j), 2e-3);
    }
  }
}

TEST_F(CoOccurrenceEmbeddingTest, APairInOneItemsListCountsForBoth) {
  const CoOccurrences both{{0, 2, 3, 4}, {1, 2, 0, 0}, {4, 1, 4, 1}};
  const CoOccurrences once{{0, 1, 1, 2}, {1, 0}, {4, 1}};
  EXPECT_EQ(embed(both, 2), embed(once, 2));
}

TEST_F(CoOccurrenceEmbeddingTest, ItemsThatMeetTheSameItemsAreNear) {
  Matrix weights(30, std::vector<double>(30));
  for (int i = 0; i < 30; ++i) {
    for (int j = 0; j < 30; ++j) weights[i][j] = i != j && i % 3 == j % 3 ? 1 : 0;
  }
  const std::vector<float> rows = embed(pairs_of(weights), 3);
  for (int i = 0; i < 30; ++i) {
    for (int j = 0; j < 30; ++j) {
      EXPECT_NEAR(dot(&rows[3 * i], &rows[3 * j], 3), i % 3 == j % 3 ? 1 : 0, 1e-3);
    }
  }
}

TEST_F(CoOccurrenceEmbeddingTest, ItemsWithoutPartnersAndColumnsBeyondTheRankAreZero) {
  // Items 0 and 2 meet; 1 and 3 meet nobody. The matrix has rank 2.
  const CoOccurrences pairs{{0, 1, 1, 2, 2}, {2, 0}, {3, 3}};
  const std::vector<float> rows = embed(pairs, 5);
  for (const int item : {1, 3}) EXPECT_EQ(dot(&rows[5 * item], &rows[5 * item], 5), 0);
  for (const int item : {0, 2}) {
    EXPECT_NEAR(dot(&rows[5 * item], &rows[5 * item], 5), 1, 1e-6);
    for (int j = 2; j < 5; ++j) EXPECT_NEAR(rows[5 * item + j], 0, 1e-5);
  }
  EXPECT_TRUE(embed({{0}, {}, {}}, 3).empty());
  EXPECT_EQ(embed({{0, 0, 0}, {}, {}}, 2), std::vector<float>(4));
}

TEST_F(CoOccurrenceEmbeddingTest, TheSameSeedGivesTheSameBits) {
  const CoOccurrences pairs = pairs_of(random_weights(200, 9));
  EXPECT_EQ(embed(pairs, 8, 1), embed(pairs, 8, 1));
  EXPECT_NE(embed(pairs, 8, 1), embed(pairs, 8, 2));
}

}  // namespace
}  // namespace mirabelle
