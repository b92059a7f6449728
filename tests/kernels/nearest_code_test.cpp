#include "mirabelle/kernels/nearest_code.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>

#include "support/backends.h"

namespace mirabelle::testing {
namespace {

double squared_distance(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return sum;
}

/// The first of the nearest rows, in float64, by differences.
int32_t nearest_row(const double* residual, const std::vector<double>& codebook,
                    int64_t codebook_dim) {
  int32_t best = 0;
  const int64_t codebook_size = static_cast<int64_t>(codebook.size()) / codebook_dim;
  for (int32_t j = 1; j < codebook_size; ++j) {
    if (squared_distance(residual, &codebook[j * codebook_dim], codebook_dim) <
        squared_distance(residual, &codebook[best * codebook_dim], codebook_dim)) {
      best = j;
    }
  }
  return best;
}

/// Small whole numbers, with which all arithmetic is exact in float32 and ties are frequent.
std::vector<double> whole_numbers(int64_t n, int64_t levels, uint64_t seed) {
  Random random(random_key(seed, "test"));
  std::vector<double> values(n);
  for (double& value : values) value = static_cast<double>(random.below(levels) - levels / 2);
  return values;
}

struct Accumulated {
  std::vector<double> sums;
  std::vector<int64_t> counts;
};

class NearestCodeTest : public BackendTest {
 protected:
  std::vector<int32_t> run_nearest(const std::vector<double>& residual,
                                   const std::vector<double>& codebook, int64_t n,
                                   int64_t codebook_size, int64_t codebook_dim) {
    const Buffer codes = make_int_tensor(GetParam(), std::vector<int32_t>(n, -7));
    const Buffer r = make_tensor(GetParam(), {n, codebook_dim}, residual);
    const Buffer c = make_tensor(GetParam(), {codebook_size, codebook_dim}, codebook);
    const int64_t workspace_size = (n + 1) * codebook_size;
    const Buffer workspace =
        make_tensor(GetParam(), {workspace_size}, std::vector<double>(workspace_size, NAN));
    nearest_code(codes.view(), r.view(), c.view(), workspace.view(), stream_);
    return to_host<int32_t>(codes.view());
  }

  std::vector<double> run_distances(const std::vector<double>& residual,
                                    const std::vector<int32_t>& codes,
                                    const std::vector<double>& codebook, int64_t codebook_dim) {
    const int64_t n = static_cast<int64_t>(codes.size());
    const int64_t codebook_size = static_cast<int64_t>(codebook.size()) / codebook_dim;
    const Buffer distances = make_tensor(GetParam(), {n}, std::vector<double>(n, NAN));
    const Buffer r = make_tensor(GetParam(), {n, codebook_dim}, residual);
    const Buffer c = make_tensor(GetParam(), {codebook_size, codebook_dim}, codebook);
    code_distances(distances.view(), r.view(), make_int_tensor(GetParam(), codes).view(), c.view(),
                   stream_);
    return to_doubles(distances.view());
  }

  /// On top of sums of 0.5 and counts of 3.
  Accumulated run_accumulate(const std::vector<double>& residual, const std::vector<int32_t>& codes,
                             int64_t codebook_size, int64_t codebook_dim) {
    const int64_t n = static_cast<int64_t>(codes.size());
    const Shape shape{codebook_size, codebook_dim};
    const Buffer sums = make_tensor(GetParam().device, DType::kFloat64, shape,
                                    std::vector<double>(shape.num_elements(), 0.5));
    const Buffer counts({codebook_size}, DType::kInt64, GetParam().device);
    const std::vector<int64_t> threes(codebook_size, 3);
    copy(counts.view(), view_of(threes), stream_);
    accumulate_codes(sums.view(), counts.view(),
                     make_tensor(GetParam(), {n, codebook_dim}, residual).view(),
                     make_int_tensor(GetParam(), codes).view(), stream_);
    return {to_host<double>(sums.view()), to_host<int64_t>(counts.view())};
  }
};
MIRABELLE_INSTANTIATE_WIDE_BACKENDS(NearestCodeTest);

TEST_P(NearestCodeTest, IsTheFirstOfTheNearestRowsWhereArithmeticIsExact) {
  for (int64_t codebook_size : {1, 2, 7, 8, 15, 16, 17, 33, 256, 1000}) {
    for (int64_t codebook_dim : {1, 3, 16, 33}) {
      const int64_t n = 50;
      const auto residual = whole_numbers(n * codebook_dim, 7, 1);
      const auto codebook = whole_numbers(codebook_size * codebook_dim, 5, 2);
      const auto codes = run_nearest(residual, codebook, n, codebook_size, codebook_dim);
      for (int64_t i = 0; i < n; ++i) {
        ASSERT_EQ(codes[i], nearest_row(&residual[i * codebook_dim], codebook, codebook_dim))
            << "residual " << i << ", " << codebook_size << " codes of " << codebook_dim;
      }
    }
  }
}

TEST_P(NearestCodeTest, IsAsNearAsTheNearestRowForRandomNumbers) {
  const int64_t n = 1000, codebook_size = 257, codebook_dim = 32;
  const auto residual = random_values(n * codebook_dim, 3);
  const auto codebook = random_values(codebook_size * codebook_dim, 4);
  const auto codes = run_nearest(residual, codebook, n, codebook_size, codebook_dim);
  int64_t num_other = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double* row = &residual[i * codebook_dim];
    const int32_t expected = nearest_row(row, codebook, codebook_dim);
    ASSERT_NEAR(squared_distance(row, &codebook[codes[i] * codebook_dim], codebook_dim),
                squared_distance(row, &codebook[expected * codebook_dim], codebook_dim),
                100 * GetParam().tolerance);
    num_other += codes[i] != expected;
  }
  EXPECT_LE(num_other, 1);  // two rows within the rounding of each other
}

TEST_P(NearestCodeTest, TiesGoToTheLowerIndex) {
  // Copies of one row at 5, 20, 21 and 36: in different lanes and groups of any vector.
  const int64_t codebook_size = 37, codebook_dim = 4;
  auto codebook = whole_numbers(codebook_size * codebook_dim, 5, 5);
  for (int64_t copy : {5, 20, 21, 36}) {
    for (int64_t c = 0; c < codebook_dim; ++c) codebook[copy * codebook_dim + c] = 10;
  }
  EXPECT_EQ(run_nearest({9, 9, 9, 9}, codebook, 1, codebook_size, codebook_dim)[0], 5);
  for (int64_t c = 0; c < codebook_dim; ++c) codebook[5 * codebook_dim + c] = 0;
  EXPECT_EQ(run_nearest({9, 9, 9, 9}, codebook, 1, codebook_size, codebook_dim)[0], 20);
  const std::vector<double> same(codebook_size * codebook_dim, 1.5);
  EXPECT_EQ(run_nearest({9, 9, 9, 9}, same, 1, codebook_size, codebook_dim)[0], 0);
}

TEST_P(NearestCodeTest, EveryRowIsNearestToItself) {
  const int64_t codebook_size = 512, codebook_dim = 8;
  const auto codebook = random_values(codebook_size * codebook_dim, 6);
  const auto codes = run_nearest(codebook, codebook, codebook_size, codebook_size, codebook_dim);
  for (int32_t j = 0; j < codebook_size; ++j) ASSERT_EQ(codes[j], j);
}

TEST_P(NearestCodeTest, DoesNothingWithoutResiduals) {
  EXPECT_TRUE(run_nearest({}, {1, 2}, 0, 1, 2).empty());
  EXPECT_TRUE(run_nearest({}, {}, 0, 0, 2).empty());
}

TEST_P(NearestCodeTest, GivesTheSameBitsEveryTime) {
  const int64_t n = 1000, codebook_size = 100, codebook_dim = 24;
  const auto residual = random_values(n * codebook_dim, 7);
  const auto codebook = random_values(codebook_size * codebook_dim, 8);
  const auto codes = run_nearest(residual, codebook, n, codebook_size, codebook_dim);
  EXPECT_EQ(run_nearest(residual, codebook, n, codebook_size, codebook_dim), codes);
  const Accumulated first = run_accumulate(residual, codes, codebook_size, codebook_dim);
  const Accumulated second = run_accumulate(residual, codes, codebook_size, codebook_dim);
  EXPECT_EQ(first.sums, second.sums);
  EXPECT_EQ(first.counts, second.counts);
}

TEST_P(NearestCodeTest, ResultsDoNotDependOnTheNumberOfThreads) {
  if (GetParam().device != Device::kCpu) GTEST_SKIP() << "CPU only";
  const int64_t n = 301, codebook_size = 100, codebook_dim = 24;
  const auto residual = random_values(n * codebook_dim, 7);
  const auto codebook = random_values(codebook_size * codebook_dim, 8);
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const auto alone = run_nearest(residual, codebook, n, codebook_size, codebook_dim);
  omp_set_num_threads(3);
  EXPECT_EQ(run_nearest(residual, codebook, n, codebook_size, codebook_dim), alone);
  omp_set_num_threads(threads);
}

TEST_P(NearestCodeTest, SubtractLeavesTheResidualOfTheNextLevel) {
  const int64_t n = 77, codebook_size = 9, codebook_dim = 19;
  const auto before = random_values(n * codebook_dim, 9);
  const auto codebook = random_values(codebook_size * codebook_dim, 10);
  std::vector<int32_t> codes(n);
  for (int64_t i = 0; i < n; ++i) codes[i] = static_cast<int32_t>(i * i % codebook_size);
  const Buffer residual = make_tensor(GetParam(), {n, codebook_dim}, before);
  subtract_code(residual.view(), make_int_tensor(GetParam(), codes).view(),
                make_tensor(GetParam(), {codebook_size, codebook_dim}, codebook).view(), stream_);
  std::vector<double> expected(before);
  for (int64_t i = 0; i < n * codebook_dim; ++i) {
    expected[i] -= codebook[codes[i / codebook_dim] * codebook_dim + i % codebook_dim];
  }
  expect_near(to_doubles(residual.view()), expected, GetParam().tolerance, "residual");
}

TEST_P(NearestCodeTest, SubtractDoesNothingWithoutResiduals) {
  const Buffer residual = make_tensor(GetParam(), {0, 3}, {});
  subtract_code(residual.view(), make_int_tensor(GetParam(), {}).view(),
                make_tensor(GetParam(), {1, 3}, {1, 2, 3}).view(), stream_);
  EXPECT_EQ(residual.view().num_elements(), 0);
}

TEST_P(NearestCodeTest, DistancesAreThoseToTheChosenCode) {
  for (int64_t n : {1, 7, 1000}) {
    for (int64_t codebook_dim : {1, 3, 8, 16, 19, 33, 100, 768}) {
      const int64_t codebook_size = 9;
      const auto residual = random_values(n * codebook_dim, 13);
      const auto codebook = random_values(codebook_size * codebook_dim, 14);
      std::vector<int32_t> codes(n);
      for (int64_t i = 0; i < n; ++i) codes[i] = static_cast<int32_t>(i * i % codebook_size);
      std::vector<double> expected(n);
      for (int64_t i = 0; i < n; ++i) {
        expected[i] = squared_distance(&residual[i * codebook_dim],
                                       &codebook[codes[i] * codebook_dim], codebook_dim);
      }
      expect_near(run_distances(residual, codes, codebook, codebook_dim), expected,
                  GetParam().tolerance, "distances");
    }
  }
}

TEST_P(NearestCodeTest, DistancesAreExactWhereArithmeticIs) {
  const int64_t n = 301, codebook_size = 17, codebook_dim = 37;
  const auto codebook = whole_numbers(codebook_size * codebook_dim, 7, 15);
  auto residual = whole_numbers(n * codebook_dim, 7, 16);
  std::vector<int32_t> codes(n);
  std::vector<double> expected(n);
  for (int64_t i = 0; i < n; ++i) {
    codes[i] = static_cast<int32_t>(i % codebook_size);
    const double* code = &codebook[codes[i] * codebook_dim];
    if (i % 3 == 0) std::copy_n(code, codebook_dim, &residual[i * codebook_dim]);
    expected[i] = squared_distance(&residual[i * codebook_dim], code, codebook_dim);
  }
  EXPECT_EQ(run_distances(residual, codes, codebook, codebook_dim), expected);
}

TEST_P(NearestCodeTest, DistancesOfNothingAreNothing) {
  EXPECT_TRUE(run_distances({}, {}, {1, 2}, 2).empty());
}

TEST_P(NearestCodeTest, AccumulateAddsUpTheResidualsOfEveryCode) {
  struct Case {
    int64_t n, codebook_size, codebook_dim;
  };
  for (const auto& [n, codebook_size, codebook_dim] :
       {Case{1, 1, 1}, Case{7, 3, 19}, Case{1000, 1, 33}, Case{1000, 2000, 5}, Case{20001, 300, 32},
        Case{20001, 4, 70}}) {
    // Whole numbers of up to 24 bits: every order gives the same float64 sums, and no float32 ones.
    const auto residual = whole_numbers(n * codebook_dim, 1 << 24, 17);
    Random random(random_key(18, "test"));
    std::vector<int32_t> codes(n);
    for (int32_t& code : codes) {
      const double u = random.uniform();  // cubed: long runs of the low ones, none of some others
      code = static_cast<int32_t>(u * u * u * static_cast<double>(codebook_size));
    }
    std::vector<double> sums(codebook_size * codebook_dim, 0.5);
    std::vector<int64_t> counts(codebook_size, 3);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t c = 0; c < codebook_dim; ++c) {
        sums[codes[i] * codebook_dim + c] += residual[i * codebook_dim + c];
      }
      ++counts[codes[i]];
    }
    const Accumulated actual = run_accumulate(residual, codes, codebook_size, codebook_dim);
    EXPECT_EQ(actual.sums, sums) << n << " residuals of " << codebook_size << " codes";
    EXPECT_EQ(actual.counts, counts) << n << " residuals of " << codebook_size << " codes";
  }
}

TEST_P(NearestCodeTest, AccumulateAddsInTheOrderOfTheResidualsForAnyNumberOfThreads) {
  if (GetParam().device != Device::kCpu) GTEST_SKIP() << "CPU only";
  const int64_t n = 1000, codebook_size = 13, codebook_dim = 21;
  auto residual = random_values(n * codebook_dim, 11);
  for (int64_t i = 0; i < n * codebook_dim; ++i) {
    residual[i] = std::ldexp(residual[i], i % 61 - 30);  // of such sizes that every order shows
  }
  Random random(random_key(12, "test"));
  std::vector<int32_t> codes(n);
  for (int32_t& code : codes) code = static_cast<int32_t>(random.below(codebook_size - 1));
  std::vector<double> sums(codebook_size * codebook_dim, 0.5);
  std::vector<int64_t> counts(codebook_size, 3);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t c = 0; c < codebook_dim; ++c) {
      sums[codes[i] * codebook_dim + c] += residual[i * codebook_dim + c];
    }
    ++counts[codes[i]];
  }
  const int threads = omp_get_max_threads();
  for (int num_threads : {1, 2, 5, 20}) {  // 20: more than codes
    omp_set_num_threads(num_threads);
    const Accumulated actual = run_accumulate(residual, codes, codebook_size, codebook_dim);
    EXPECT_EQ(actual.sums, sums) << num_threads << " threads";  // to the last bit
    EXPECT_EQ(actual.counts, counts) << num_threads << " threads";
  }
  omp_set_num_threads(threads);
}

TEST_P(NearestCodeTest, AccumulateLeavesSumsAloneWithoutResiduals) {
  const Accumulated actual = run_accumulate({}, {}, 2, 3);
  EXPECT_EQ(actual.sums, std::vector<double>(6, 0.5));
  EXPECT_EQ(actual.counts, std::vector<int64_t>(2, 3));
}

// --- checks
// ---------------------------------------------------------------------------------------

Buffer floats(const Shape& shape) { return Buffer(shape, DType::kFloat32); }

struct Operands {
  Buffer codes = Buffer({4}, DType::kInt32), residual = floats({4, 3}), codebook = floats({2, 3});
  Buffer workspace = floats({10}), distances = floats({4});
  Buffer sums = Buffer({2, 3}, DType::kFloat64), counts = Buffer({2}, DType::kInt64);
  Stream stream;

  template <typename Call>
  static std::string error_of(const Call& call) {
    try {
      call();
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }
  std::string nearest_error() const {
    return error_of([&] {
      nearest_code(codes.view(), residual.view(), codebook.view(), workspace.view(), stream);
    });
  }
  std::string subtract_error() const {
    return error_of([&] { subtract_code(residual.view(), codes.view(), codebook.view(), stream); });
  }
  std::string distances_error() const {
    return error_of([&] {
      code_distances(distances.view(), residual.view(), codes.view(), codebook.view(), stream);
    });
  }
  std::string accumulate_error() const {
    return error_of([&] {
      accumulate_codes(sums.view(), counts.view(), residual.view(), codes.view(), stream);
    });
  }
};

TEST(NearestCodeCheckTest, AcceptsMatchingOperands) {
  const Operands operands;
  EXPECT_EQ(operands.nearest_error(), "");
  EXPECT_EQ(operands.subtract_error(), "");
  EXPECT_EQ(operands.distances_error(), "");
  EXPECT_EQ(operands.accumulate_error(), "");
}

TEST(NearestCodeCheckTest, RefusesResidualsThatAreNoMatrix) {
  Operands operands;
  operands.residual = floats({12});
  const std::string message = "residual has shape [12], wanted [n, codebook_dim]";
  EXPECT_EQ(operands.nearest_error(), message);
  EXPECT_EQ(operands.subtract_error(), message);
  EXPECT_EQ(operands.distances_error(), message);
  EXPECT_EQ(operands.accumulate_error(), message);
}

TEST(NearestCodeCheckTest, RefusesACodebookOfAnotherShapeOrType) {
  Operands operands;
  operands.codebook = floats({6});
  EXPECT_EQ(operands.nearest_error(),
            "codebook has shape [6], wanted [codebook_size, codebook_dim]");
  EXPECT_EQ(operands.subtract_error(), operands.nearest_error());
  EXPECT_EQ(operands.distances_error(), operands.nearest_error());
  operands.codebook = floats({2, 4});
  EXPECT_EQ(operands.nearest_error(), "codebook has shape [2, 4], wanted [2, 3]");
  EXPECT_EQ(operands.subtract_error(), operands.nearest_error());
  EXPECT_EQ(operands.distances_error(), operands.nearest_error());
  operands.codebook = Buffer({2, 3}, DType::kFloat64);
  EXPECT_EQ(operands.nearest_error(), "codebook is float64, wanted float32");
  EXPECT_EQ(operands.subtract_error(), operands.nearest_error());
  EXPECT_EQ(operands.distances_error(), operands.nearest_error());
}

TEST(NearestCodeCheckTest, RefusesCodesOfAnotherShapeOrType) {
  Operands operands;
  operands.codes = Buffer({3}, DType::kInt32);
  EXPECT_EQ(operands.nearest_error(), "codes has shape [3], wanted [4]");
  EXPECT_EQ(operands.subtract_error(), operands.nearest_error());
  EXPECT_EQ(operands.distances_error(), operands.nearest_error());
  EXPECT_EQ(operands.accumulate_error(), operands.nearest_error());
  operands.codes = Buffer({4}, DType::kInt64);
  EXPECT_EQ(operands.nearest_error(), "codes is int64, wanted int32");
  EXPECT_EQ(operands.subtract_error(), operands.nearest_error());
  EXPECT_EQ(operands.distances_error(), operands.nearest_error());
  EXPECT_EQ(operands.accumulate_error(), operands.nearest_error());
}

TEST(NearestCodeCheckTest, RefusesAWorkspaceOfAnotherSize) {
  Operands operands;
  operands.workspace = floats({8});
  EXPECT_EQ(operands.nearest_error(), "workspace has shape [8], wanted [10]");
}

TEST(NearestCodeCheckTest, RefusesDistancesOfAnotherShapeOrType) {
  Operands operands;
  operands.distances = floats({3});
  EXPECT_EQ(operands.distances_error(), "distances has shape [3], wanted [4]");
  operands.distances = Buffer({4}, DType::kFloat64);
  EXPECT_EQ(operands.distances_error(), "distances is float64, wanted float32");
}

TEST(NearestCodeCheckTest, RefusesToFindTheNearestOfNothing) {
  Operands operands;
  operands.codebook = floats({0, 3});
  operands.workspace = floats({0});
  EXPECT_EQ(operands.nearest_error(),
            "the codebook is empty, wanted a nearest row for 4 residuals");
}

TEST(NearestCodeCheckTest, RefusesCodesBeyondTheCodebook) {
  Operands operands;
  operands.codes.view().as<int32_t>()[2] = 2;
  EXPECT_EQ(operands.subtract_error(), "codes[2] is 2, the codebook has 2 rows");
  EXPECT_EQ(operands.distances_error(), operands.subtract_error());
  EXPECT_EQ(operands.accumulate_error(), operands.subtract_error());
  operands.codes.view().as<int32_t>()[2] = -1;
  EXPECT_EQ(operands.subtract_error(), "codes[2] is -1, the codebook has 2 rows");
  EXPECT_EQ(operands.distances_error(), operands.subtract_error());
  EXPECT_EQ(operands.accumulate_error(), operands.subtract_error());
}

TEST(NearestCodeCheckTest, RefusesSumsAndCountsOfAnotherShapeOrType) {
  Operands operands;
  operands.sums = Buffer({6}, DType::kFloat64);
  EXPECT_EQ(operands.accumulate_error(),
            "sums has shape [6], wanted [codebook_size, codebook_dim]");
  operands.sums = Buffer({2, 4}, DType::kFloat64);
  EXPECT_EQ(operands.accumulate_error(), "sums has shape [2, 4], wanted [2, 3]");
  operands.sums = floats({2, 3});
  EXPECT_EQ(operands.accumulate_error(), "sums is float32, wanted float64");
  operands.sums = Buffer({2, 3}, DType::kFloat64);
  operands.counts = Buffer({3}, DType::kInt64);
  EXPECT_EQ(operands.accumulate_error(), "counts has shape [3], wanted [2]");
  operands.counts = Buffer({2}, DType::kInt32);
  EXPECT_EQ(operands.accumulate_error(), "counts is int32, wanted int64");
}

}  // namespace
}  // namespace mirabelle::testing
