#include "mirabelle/tokenizer/residual_kmeans.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "mirabelle/core/error.h"
#include "mirabelle/core/random.h"
#include "support/devices.h"

namespace mirabelle::testing {
namespace {

/// A matrix in memory, which refuses to be read in pieces larger than it was promised.
struct Matrix {
  int64_t dim;
  std::vector<float> values;
  int64_t largest_piece = 0;

  int64_t num_items() const { return static_cast<int64_t>(values.size()) / dim; }
  ItemRows rows() {
    return {num_items(), dim, [this](int64_t begin, int64_t end, float* out) {
              largest_piece = std::max(largest_piece, end - begin);
              std::copy(values.begin() + begin * dim, values.begin() + end * dim, out);
            }};
  }
};

/// Points around `num_centers` centres.
Matrix clustered(int64_t num_items, int64_t dim, int64_t num_centers, double noise, uint64_t seed) {
  Random random(random_key(seed, "test"));
  std::vector<double> centers(num_centers * dim);
  for (double& value : centers) value = 10 * random.normal();
  Matrix matrix{dim, {}};
  for (int64_t i = 0; i < num_items; ++i) {
    const int64_t center = random.below(num_centers);
    for (int64_t j = 0; j < dim; ++j) {
      matrix.values.push_back(
          static_cast<float>(centers[center * dim + j] + noise * random.normal()));
    }
  }
  return matrix;
}

TokenizerConfig config_of(std::vector<int64_t> levels) {
  TokenizerConfig config;
  config.levels = std::move(levels);
  config.tolerance = 0;
  config.iterations = 200;
  config.batch_items = 7;
  return config;
}

ResidualKMeans fit_on(Device device, Matrix& matrix, const TokenizerConfig& config) {
  return residual_kmeans(matrix.rows(), config, device, *make_self_communicator());
}

class ResidualKMeansTest : public DeviceTest {
 protected:
  static ResidualKMeans fit(Matrix& matrix, const TokenizerConfig& config) {
    return fit_on(GetParam(), matrix, config);
  }
};
MIRABELLE_INSTANTIATE_DEVICES(ResidualKMeansTest);

// The oracle: everything in double, from the definitions.
using Doubles = std::vector<double>;

double squared_distance(const double* a, const float* b, int64_t dim) {
  double sum = 0;
  for (int64_t j = 0; j < dim; ++j) sum += (a[j] - b[j]) * (a[j] - b[j]);
  return sum;
}

/// Every code is nearest, every codebook row the mean of its residuals, and the errors are right.
void expect_fixed_point(const Matrix& matrix, const ResidualKMeans& fitted) {
  const int64_t n = matrix.num_items(), dim = matrix.dim;
  Doubles residual(matrix.values.begin(), matrix.values.end());
  const auto mean_square = [&] {
    double sum = 0;
    for (const double value : residual) sum += value * value;
    return sum / static_cast<double>(n);
  };
  const double scale = std::sqrt(mean_square()) + 1e-9;
  ASSERT_EQ(fitted.errors.size(), fitted.codebooks.size() + 1);
  EXPECT_NEAR(fitted.errors[0], mean_square(), 1e-5 * scale * scale);
  for (size_t level = 0; level < fitted.codebooks.size(); ++level) {
    const Codebook& codebook = fitted.codebooks[level];
    ASSERT_EQ(static_cast<int64_t>(fitted.codes[level].size()), n);
    ASSERT_EQ(static_cast<int64_t>(codebook.rows.size()), codebook.size * dim);
    Doubles sums(codebook.size * dim), counts(codebook.size);
    for (int64_t i = 0; i < n; ++i) {
      const int32_t code = fitted.codes[level][i];
      ASSERT_GE(code, 0);
      ASSERT_LT(code, codebook.size);
      const double* row = residual.data() + i * dim;
      const double own = squared_distance(row, &codebook.rows[code * dim], dim);
      for (int64_t other = 0; other < codebook.size; ++other) {
        ASSERT_LE(own,
                  squared_distance(row, &codebook.rows[other * dim], dim) + 1e-5 * scale * scale)
            << "level " << level << ", item " << i << ", code " << code << ", nearer " << other;
      }
      counts[code] += 1;
      for (int64_t j = 0; j < dim; ++j) sums[code * dim + j] += row[j];
    }
    for (int64_t code = 0; code < codebook.size; ++code) {
      if (counts[code] == 0) continue;
      for (int64_t j = 0; j < dim; ++j) {
        ASSERT_NEAR(codebook.rows[code * dim + j], sums[code * dim + j] / counts[code],
                    1e-5 * scale)
            << "level " << level << ", code " << code;
      }
    }
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < dim; ++j) {
        residual[i * dim + j] -= codebook.rows[fitted.codes[level][i] * dim + j];
      }
    }
    EXPECT_NEAR(fitted.errors[level + 1], mean_square(), 1e-5 * scale * scale);
  }
}

int64_t num_used(const std::vector<int32_t>& codes) {
  return static_cast<int64_t>(std::set(codes.begin(), codes.end()).size());
}

TEST_P(ResidualKMeansTest, EndsAtAFixedPointOfTheNaiveAlgorithm) {
  Matrix matrix = clustered(301, 5, 12, 2.0, 1);
  const ResidualKMeans fitted = fit(matrix, config_of({9, 5, 3}));
  ASSERT_EQ(fitted.codebooks.size(), 3u);
  expect_fixed_point(matrix, fitted);
  EXPECT_LT(fitted.errors[1], fitted.errors[0]);
  EXPECT_LT(fitted.errors[2], fitted.errors[1]);
  EXPECT_LT(fitted.errors[3], fitted.errors[2]);
}

TEST_P(ResidualKMeansTest, EndsAtAFixedPointFromASampledStart) {
  Matrix matrix = clustered(301, 17, 12, 2.0, 2);
  TokenizerConfig config = config_of({16, 4});
  config.initialization = "sample";
  expect_fixed_point(matrix, fit(matrix, config));
}

TEST_P(ResidualKMeansTest, FindsWellSeparatedClustersExactly) {
  constexpr int64_t kClusters = 10, kDim = 8;
  Matrix matrix = clustered(500, kDim, kClusters, 0.01, 3);
  const ResidualKMeans fitted = fit(matrix, config_of({kClusters}));
  expect_fixed_point(matrix, fitted);
  // noise of variance 1e-4 in each dimension is all that is left
  EXPECT_NEAR(fitted.errors[1], kDim * 1e-4, 1e-4);
  EXPECT_EQ(num_used(fitted.codes[0]), kClusters);
}

TEST_P(ResidualKMeansTest, OneIterationFromEveryItemAsItsOwnCodeIsExact) {
  Matrix matrix = clustered(40, 3, 40, 1.0, 4);
  const ResidualKMeans fitted = fit(matrix, config_of({40}));
  EXPECT_EQ(num_used(fitted.codes[0]), 40);
  EXPECT_EQ(fitted.errors[1], 0);
}

TEST_P(ResidualKMeansTest, OneCodeIsTheMean) {
  Matrix matrix = clustered(123, 4, 5, 1.0, 5);
  const ResidualKMeans fitted = fit(matrix, config_of({1}));
  ASSERT_EQ(fitted.codebooks[0].size, 1);
  for (int64_t j = 0; j < 4; ++j) {
    double sum = 0;
    for (int64_t i = 0; i < 123; ++i) sum += matrix.values[i * 4 + j];
    EXPECT_NEAR(fitted.codebooks[0].rows[j], sum / 123, 1e-5);
  }
}

TEST_P(ResidualKMeansTest, FewerItemsThanCodesLeaveCodesUnused) {
  Matrix matrix = clustered(5, 6, 5, 1.0, 6);
  const ResidualKMeans fitted = fit(matrix, config_of({8, 8}));
  EXPECT_EQ(fitted.codebooks[0].size, 5);
  EXPECT_EQ(num_used(fitted.codes[0]), 5);
  EXPECT_EQ(fitted.errors[1], 0);
  EXPECT_EQ(fitted.codebooks[1].size, 1) << "nothing is left, so all residuals are equal";
  expect_fixed_point(matrix, fitted);
}

TEST_P(ResidualKMeansTest, OneItemIsItsOwnCode) {
  Matrix matrix{3, {1.5f, -2.0f, 0.25f}};
  const ResidualKMeans fitted = fit(matrix, config_of({4, 4}));
  EXPECT_EQ(fitted.codebooks[0].rows, matrix.values);
  EXPECT_EQ(fitted.codes[0], std::vector<int32_t>{0});
  EXPECT_EQ(fitted.errors, (std::vector<double>{6.3125, 0, 0}));
}

TEST_P(ResidualKMeansTest, DuplicatesShareOneCode) {
  Matrix matrix{2, {}};
  for (int64_t i = 0; i < 100; ++i) {
    const float value = static_cast<float>(i % 3);
    matrix.values.insert(matrix.values.end(), {value, -value});
  }
  const ResidualKMeans fitted = fit(matrix, config_of({8}));
  EXPECT_EQ(fitted.codebooks[0].size, 3);
  EXPECT_EQ(fitted.errors[1], 0);
  for (int64_t i = 3; i < 100; ++i) EXPECT_EQ(fitted.codes[0][i], fitted.codes[0][i - 3]);
  expect_fixed_point(matrix, fitted);
}

TEST_P(ResidualKMeansTest, AllItemsEqualNeedOneCode) {
  Matrix matrix{3, std::vector<float>(3 * 70, 0.1f)};
  const ResidualKMeans fitted = fit(matrix, config_of({4, 4}));
  EXPECT_EQ(fitted.codebooks[0].size, 1);
  EXPECT_EQ(fitted.errors[1], 0);
}

TEST_P(ResidualKMeansTest, EmptyCodesMoveToTheFarthestItems) {
  // A start that draws only copies of one point: 60 of 64 items are equal.
  Matrix matrix{2, std::vector<float>(2 * 60, 1.0f)};
  for (const float far : {50.0f, 60.0f, 70.0f, 80.0f}) {
    matrix.values.insert(matrix.values.end(), {far, -far});
  }
  TokenizerConfig config = config_of({5});
  config.initialization = "sample";
  for (config.seed = 0; config.seed < 5; ++config.seed) {
    const ResidualKMeans fitted = fit(matrix, config);
    EXPECT_EQ(num_used(fitted.codes[0]), 5) << "seed " << config.seed;
    EXPECT_EQ(fitted.errors[1], 0) << "seed " << config.seed;
  }
}

TEST_P(ResidualKMeansTest, CodesThatASmallSampleCouldNotStartAreFoundInAllItems) {
  Matrix matrix = clustered(400, 4, 20, 0.01, 8);
  TokenizerConfig config = config_of({20});
  config.initialization_sample = 1;  // raised to the 20 codes that are wanted
  const ResidualKMeans fitted = fit(matrix, config);
  EXPECT_EQ(fitted.codebooks[0].size, 20);
  EXPECT_EQ(num_used(fitted.codes[0]), 20);
}

TEST_P(ResidualKMeansTest, ErrorNeverGrowsWhileNoCodeIsEmpty) {
  Matrix matrix = clustered(2000, 6, 30, 4.0, 9);
  TokenizerConfig config = config_of({8});
  std::vector<double> errors;
  residual_kmeans(matrix.rows(), config, GetParam(), *make_self_communicator(),
                  [&](const KMeansProgress& now) {
                    EXPECT_EQ(now.iteration, static_cast<int64_t>(errors.size()));
                    EXPECT_GT(now.items_per_second, 0);
                    errors.push_back(now.error);
                  });
  ASSERT_GT(errors.size(), 3u);
  for (size_t i = 1; i < errors.size(); ++i) EXPECT_LE(errors[i], errors[i - 1] * (1 + 1e-6));
}

TEST_P(ResidualKMeansTest, StopsAfterTheConfiguredIterations) {
  Matrix matrix = clustered(2000, 6, 30, 4.0, 9);
  TokenizerConfig config = config_of({32});
  config.iterations = 2;
  int64_t calls = 0;
  residual_kmeans(matrix.rows(), config, GetParam(), *make_self_communicator(),
                  [&](const KMeansProgress&) { ++calls; });
  EXPECT_EQ(calls, 2);
}

TEST_P(ResidualKMeansTest, HoldsNoMoreThanABatch) {
  Matrix matrix = clustered(1000, 3, 10, 1.0, 10);
  TokenizerConfig config = config_of({4, 4});
  config.batch_items = 5;
  fit(matrix, config);
  EXPECT_LE(matrix.largest_piece, 5);
}

TEST_P(ResidualKMeansTest, IsAFunctionOfTheSeed) {
  Matrix matrix = clustered(300, 4, 40, 3.0, 11);
  TokenizerConfig config = config_of({10});
  config.iterations = 1;
  const ResidualKMeans first = fit(matrix, config), again = fit(matrix, config);
  EXPECT_EQ(first.codebooks[0].rows, again.codebooks[0].rows);
  config.seed = 1;
  EXPECT_NE(first.codebooks[0].rows, fit(matrix, config).codebooks[0].rows);
}

TEST_P(ResidualKMeansTest, BatchSizeDoesNotChangeTheResult) {
  if (GetParam() != Device::kCpu) GTEST_SKIP() << "CPU only";
  Matrix matrix = clustered(777, 12, 40, 3.0, 12);
  TokenizerConfig config = config_of({16, 8});
  config.iterations = 5;
  config.batch_items = 3;
  const ResidualKMeans small = fit(matrix, config);
  config.batch_items = 1000;
  const ResidualKMeans large = fit(matrix, config);
  EXPECT_EQ(small.codes, large.codes);
  EXPECT_EQ(small.codebooks[1].rows, large.codebooks[1].rows);
}

TEST_P(ResidualKMeansTest, RefusesToFitNothing) {
  Matrix matrix{3, {}};
  EXPECT_THROW(fit(matrix, config_of({4})), Error);
}

TEST(FitNormalizationTest, EqualsMeansAndDeviationsInDouble) {
  Matrix matrix = clustered(333, 7, 5, 1.0, 13);
  const FeatureNormalization normalization = fit_normalization(
      {{"a", 4, 1}, {"b", 3, 1}}, matrix.rows(), false, 10, *make_self_communicator());
  for (int64_t j = 0; j < 7; ++j) {
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < 333; ++i) mean += matrix.values[i * 7 + j] / 333.0;
    for (int64_t i = 0; i < 333; ++i) {
      variance += std::pow(matrix.values[i * 7 + j] - mean, 2) / 333;
    }
    EXPECT_NEAR(normalization.means[j], mean, 1e-10);
    EXPECT_NEAR(normalization.deviations[j], std::sqrt(variance), 1e-10);
  }
}

TEST(FitNormalizationTest, SurvivesMeansMuchLargerThanDeviations) {
  Matrix matrix{1, {}};
  for (int64_t i = 0; i < 1000; ++i) matrix.values.push_back(1e6f + static_cast<float>(i % 2));
  const FeatureNormalization normalization =
      fit_normalization({{"a", 1, 1}}, matrix.rows(), false, 10, *make_self_communicator());
  EXPECT_NEAR(normalization.means[0], 1e6 + 0.5, 1e-9);
  EXPECT_NEAR(normalization.deviations[0], 0.5, 1e-9);
}

/// Total variance of columns [begin, end) after normalisation.
double variance_after(const Matrix& matrix, const FeatureNormalization& normalization,
                      int64_t begin, int64_t end) {
  std::vector<float> rows = matrix.values;
  normalization.apply(rows.data(), matrix.num_items());
  double sum = 0;
  for (int64_t i = 0; i < matrix.num_items(); ++i) {
    for (int64_t j = begin; j < end; ++j) sum += std::pow(rows[i * matrix.dim + j], 2);
  }
  return sum / static_cast<double>(matrix.num_items());
}

TEST(FitNormalizationTest, SourcesContributeTheSquareOfTheirWeightWhateverTheirWidth) {
  Matrix matrix = clustered(200, 12, 5, 1.0, 14);
  for (int64_t i = 0; i < 200; ++i) matrix.values[i * 12 + 5] = 42.1f;  // does not vary
  for (const bool per_source : {false, true}) {
    const FeatureNormalization normalization =
        fit_normalization({{"wide", 9, 1}, {"narrow", 3, 0.5}}, matrix.rows(), per_source, 64,
                          *make_self_communicator());
    EXPECT_NEAR(variance_after(matrix, normalization, 0, 9), 1, 1e-5) << per_source;
    EXPECT_NEAR(variance_after(matrix, normalization, 9, 12), 0.25, 1e-5) << per_source;
    EXPECT_EQ(variance_after(matrix, normalization, 5, 6), 0) << per_source;
  }
}

TEST(FitNormalizationTest, PerSourceKeepsTheProportionsOfFeatures) {
  Matrix matrix{2, {0, 0, 10, 1, 0, 0, 10, 1}};
  const FeatureNormalization each =
      fit_normalization({{"a", 2, 1}}, matrix.rows(), false, 64, *make_self_communicator());
  EXPECT_EQ(each.deviations, (std::vector<double>{5, 0.5}));
  const FeatureNormalization common =
      fit_normalization({{"a", 2, 1}}, matrix.rows(), true, 64, *make_self_communicator());
  EXPECT_DOUBLE_EQ(common.deviations[0], std::sqrt((25 + 0.25) / 2));
  EXPECT_EQ(common.deviations[0], common.deviations[1]);
}

TEST(FitNormalizationTest, ConstantFeaturesBecomeZeroEvenWhereTheirSumIsInexact) {
  Matrix matrix{1, std::vector<float>(10007, 0.1f)};
  const FeatureNormalization normalization =
      fit_normalization({{"a", 1, 1}}, matrix.rows(), false, 100, *make_self_communicator());
  EXPECT_EQ(normalization.deviations[0], 0);
  EXPECT_EQ(variance_after(matrix, normalization, 0, 1), 0);
}

TEST(FitNormalizationTest, RefusesNumbersThatAreNotFiniteAndNamesTheSource) {
  for (const float bad : {NAN, INFINITY}) {
    Matrix matrix = clustered(50, 4, 5, 1.0, 15);
    matrix.values[17 * 4 + 3] = bad;
    try {
      fit_normalization({{"good", 2, 1}, {"title", 2, 1}}, matrix.rows(), false, 8,
                        *make_self_communicator());
      ADD_FAILURE() << "took " << bad;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kData);
      EXPECT_STREQ(error.what(),
                   "feature source title holds numbers that are not finite (see mirabelle-data "
                   "verify)");
    }
  }
}

TEST(ResidualQuantizerTest, EncodesAsTheFitDid) {
  Matrix matrix = clustered(333, 9, 20, 2.0, 16);
  const ResidualKMeans fitted = fit_on(Device::kCpu, matrix, config_of({16, 8, 4}));
  ResidualQuantizer quantizer;
  quantizer.codebooks = fitted.codebooks;
  std::vector<int32_t> codes(333 * 3);
  std::vector<float> features = matrix.values;
  quantizer.encode(codes.data(), features.data(), 333);
  double left = 0;
  for (const float value : features) left += static_cast<double>(value) * value / 333;
  EXPECT_NEAR(left, fitted.errors[3], 1e-6 * fitted.errors[0]);
  for (int64_t i = 0; i < 333; ++i) {
    for (int64_t level = 0; level < 3; ++level) {
      ASSERT_EQ(codes[i * 3 + level], fitted.codes[level][i]) << i;
    }
  }
}

TEST(ResidualQuantizerTest, EncodesNothing) {
  Matrix matrix = clustered(20, 2, 3, 1.0, 17);
  ResidualQuantizer quantizer;
  quantizer.codebooks = fit_on(Device::kCpu, matrix, config_of({4})).codebooks;
  int32_t untouched = -7;
  quantizer.encode(&untouched, nullptr, 0);
  EXPECT_EQ(untouched, -7);
}

}  // namespace
}  // namespace mirabelle::testing
