#include "mirabelle/kernels/matmul.h"

#include <array>
#include <limits>
#include <string>

#include "support/backends.h"
#include "support/errors.h"
#include "support/threads.h"

namespace mirabelle::testing {
namespace {

using Values = std::vector<double>;

/// out[i, j] = start[i, j] + sum over p of op(a)[i, p] op(b)[p, j]
Values oracle(const Values& a, bool transpose_a, const Values& b, bool transpose_b, Values start,
              int64_t m, int64_t n, int64_t k) {
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t p = 0; p < k; ++p) {
        start[i * n + j] += (transpose_a ? a[p * m + i] : a[i * k + p]) *
                            (transpose_b ? b[j * k + p] : b[p * n + j]);
      }
    }
  }
  return start;
}

class MatmulTest : public BackendTest {
 protected:
  Buffer tensor(const Shape& shape, const Values& values) {
    return make_tensor(GetParam(), shape, values);
  }

  Buffer wide_tensor(const Shape& shape, const Values& values) {
    return make_wide_tensor(GetParam(), shape, values);
  }

  /// Of results in the wide dtype.
  static double wide_tolerance() {
    return GetParam().dtype == DType::kBFloat16 ? 1e-5 : GetParam().tolerance;
  }
  /// Of sums of k products. Those of bfloat16 are taken in float32 and then rounded once.
  static double tolerance(int64_t k) {
    return GetParam().dtype == DType::kBFloat16 ? GetParam().tolerance
                                                : GetParam().tolerance * std::sqrt(1.0 + k);
  }

  void expect_formula(int64_t m, int64_t n, int64_t k, bool transpose_a, bool transpose_b,
                      Accumulate accumulate) {
    const Values a = random_values(m * k, 1), b = random_values(k * n, 2);
    const Values before = random_values(m * n, 3);
    const Values start = accumulate == Accumulate::kYes ? before : Values(m * n, 0.0);
    const Values expected = oracle(a, transpose_a, b, transpose_b, start, m, n, k);
    const Buffer left = tensor(transpose_a ? Shape{k, m} : Shape{m, k}, a);
    const Buffer right = tensor(transpose_b ? Shape{n, k} : Shape{k, n}, b);
    const Buffer out = tensor({m, n}, before), wide_out = wide_tensor({m, n}, before);
    const auto multiply = [&](const Buffer& to) {
      matmul(to.view(), left.view(), transpose_a, right.view(), transpose_b, accumulate, stream_);
      return to_doubles(to.view());
    };
    expect_near(multiply(out), expected, tolerance(k), "out");
    if (wide_out.view().dtype == out.view().dtype) return;
    expect_near(multiply(wide_out), expected, wide_tolerance() * std::sqrt(1.0 + k), "wide out");
  }

  void expect_formula_for_all_transpositions(int64_t m, int64_t n, int64_t k,
                                             Accumulate accumulate) {
    for (bool transpose_a : {false, true}) {
      for (bool transpose_b : {false, true}) {
        SCOPED_TRACE(::testing::Message() << m << " x " << n << " x " << k << " transposed "
                                          << transpose_a << transpose_b);
        expect_formula(m, n, k, transpose_a, transpose_b, accumulate);
      }
    }
  }
};

TEST_P(MatmulTest, SmallMatricesFollowTheFormula) {
  expect_formula_for_all_transpositions(1, 1, 1, Accumulate::kNo);
  expect_formula_for_all_transpositions(7, 5, 3, Accumulate::kNo);
  expect_formula_for_all_transpositions(33, 65, 17, Accumulate::kNo);
}

TEST_P(MatmulTest, VectorsAsMatricesFollowTheFormula) {
  expect_formula_for_all_transpositions(1, 129, 70, Accumulate::kNo);
  expect_formula_for_all_transpositions(129, 1, 70, Accumulate::kNo);
  expect_formula_for_all_transpositions(70, 66, 1, Accumulate::kNo);
}

TEST_P(MatmulTest, MatricesOfSeveralTilesFollowTheFormula) {
  expect_formula_for_all_transpositions(300, 143, 129, Accumulate::kNo);
  expect_formula_for_all_transpositions(256, 192, 320, Accumulate::kNo);
}

TEST_P(MatmulTest, LargeTilesFollowTheFormula) {
  expect_formula(1030, 1030, 9, false, true, Accumulate::kNo);
  expect_formula(1030, 530, 9, true, false, Accumulate::kYes);
}

TEST_P(MatmulTest, ABatchIsTheSameAsItsMatricesByThemselves) {
  for (const auto& [count, m, n, k] : {std::array<int64_t, 4>{0, 3, 4, 5},
                                       {1, 7, 5, 3},
                                       {3, 1, 9, 7},
                                       {5, 33, 17, 65},
                                       {4, 64, 300, 64},
                                       {2, 3, 4, 0}}) {
    for (const auto& [transpose_a, transpose_b] :
         {std::array<bool, 2>{false, false}, {false, true}, {true, false}, {true, true}}) {
      for (const Accumulate accumulate : {Accumulate::kNo, Accumulate::kYes}) {
        const Buffer a = tensor(transpose_a ? Shape{count, k, m} : Shape{count, m, k},
                                random_values(count * m * k, 1));
        const Buffer b = tensor(transpose_b ? Shape{count, n, k} : Shape{count, k, n},
                                random_values(count * k * n, 2));
        const Values before = random_values(count * m * n, 3);
        const Buffer batch = wide_tensor({count, m, n}, before);
        const Buffer alone = wide_tensor({count, m, n}, before);
        batched_matmul(batch.view(), a.view(), transpose_a, b.view(), transpose_b, accumulate,
                       stream_);
        for (int64_t i = 0; i < count; ++i) {
          matmul(alone.view().slice(i), a.view().slice(i), transpose_a, b.view().slice(i),
                 transpose_b, accumulate, stream_);
        }
        SCOPED_TRACE(::testing::Message() << count << " of " << m << " x " << n << " x " << k);
        if (GetParam().device == Device::kCpu) {
          EXPECT_EQ(to_doubles(batch.view()), to_doubles(alone.view()));
        } else {
          expect_near(to_doubles(batch.view()), to_doubles(alone.view()),
                      wide_tolerance() * std::sqrt(1.0 + k), "out");
        }
      }
    }
  }
}

TEST_P(MatmulTest, ABatchRefusesOperandsThatDisagree) {
  const Buffer a = tensor({2, 3, 4}, Values(24, 0.0)), b = tensor({3, 4, 2}, Values(24, 0.0));
  const Buffer out = tensor({2, 3, 3}, Values(18, 0.0)), matrix = tensor({6, 4}, Values(24, 0.0));
  const auto product = [&](const TensorView& c, const TensorView& x, const TensorView& y) {
    batched_matmul(c, x, false, y, false, Accumulate::kNo, stream_);
  };
  const TensorView c = out.view(), x = a.view();
  expect_error("a has shape [6, 4], wanted [count,", [&] { product(c, matrix.view(), x); });
  expect_error("b has shape [6, 4], wanted [count,", [&] { product(c, x, matrix.view()); });
  expect_error("b has shape [3, 4, 2], wanted [2, 4, 2]", [&] { product(c, x, b.view()); });
  expect_error("out has shape [2, 3, 3], wanted [2, 3, 2]", [&] {
    product(c, x, b.view().reshaped({2, 4, 3}).first({2, 4, 2}));
  });
}

TEST_P(MatmulTest, AddsToOutWhereAsked) {
  expect_formula_for_all_transpositions(7, 5, 3, Accumulate::kYes);
  expect_formula_for_all_transpositions(150, 143, 67, Accumulate::kYes);
}

TEST_P(MatmulTest, SumsOfManyTermsFollowTheFormula) {  // as those of weight gradients
  expect_formula(64, 48, 3001, true, false, Accumulate::kYes);
  expect_formula(64, 64, 4096, true, false, Accumulate::kYes);
}

TEST_P(MatmulTest, OverwritesEvenNaN) {
  Buffer out = tensor({70, 3}, Values(210, std::numeric_limits<double>::quiet_NaN()));
  const Values a = random_values(70 * 4, 1), b = random_values(12, 2);
  matmul(out.view(), tensor({70, 4}, a).view(), false, tensor({4, 3}, b).view(), false,
         Accumulate::kNo, stream_);
  expect_near(to_doubles(out.view()), oracle(a, false, b, false, Values(210, 0.0), 70, 3, 4),
              4 * GetParam().tolerance, "out");
}

TEST_P(MatmulTest, InnerSizeZeroGivesZeros) {
  Buffer out = tensor({2, 3}, Values(6, 5.0));
  matmul(out.view(), tensor({2, 0}, {}).view(), false, tensor({0, 3}, {}).view(), false,
         Accumulate::kNo, stream_);
  EXPECT_EQ(to_doubles(out.view()), Values(6, 0.0));
}

TEST_P(MatmulTest, InnerSizeZeroAddsNothing) {
  Buffer out = tensor({2, 3}, Values(6, 5.0));
  matmul(out.view(), tensor({2, 0}, {}).view(), false, tensor({0, 3}, {}).view(), false,
         Accumulate::kYes, stream_);
  EXPECT_EQ(to_doubles(out.view()), Values(6, 5.0));
}

TEST_P(MatmulTest, EmptyOutputsAreLeftAlone) {
  Buffer rows = tensor({0, 3}, {}), columns = tensor({2, 0}, {});
  matmul(rows.view(), tensor({0, 4}, {}).view(), false, tensor({4, 3}, Values(12, 1.0)).view(),
         false, Accumulate::kNo, stream_);
  matmul(columns.view(), tensor({2, 4}, Values(8, 1.0)).view(), false, tensor({4, 0}, {}).view(),
         false, Accumulate::kNo, stream_);
  EXPECT_EQ(rows.view().num_elements() + columns.view().num_elements(), 0);
}

TEST_P(MatmulTest, OperandsMayBeginAnywhere) {  // not only where 16 bytes do
  const Values a = random_values(9 * 3, 1), b = random_values(5 * 3, 2);
  const Buffer left = tensor({9, 3}, a), right = tensor({5, 3}, b);
  const Buffer out = tensor({9, 5}, Values(45, 7.0));
  matmul(out.view().rows(1, 9), left.view().rows(1, 9), false, right.view(), true, Accumulate::kNo,
         stream_);
  Values expected = oracle(a, false, b, true, Values(45, 0.0), 9, 5, 3);
  std::fill(expected.begin(), expected.begin() + 5, 7.0);
  expect_near(to_doubles(out.view()), expected, 2 * GetParam().tolerance, "out");
}

TEST_P(MatmulTest, GivesTheSameBitsEveryTime) {
  for (const auto& [m, n, k] : {std::array<int64_t, 3>{64, 64, 3001}, {64, 128, 8192}}) {
    const Buffer a = tensor({k, m}, random_values(m * k, 1));
    const Buffer b = tensor({k, n}, random_values(k * n, 2));
    const auto product = [&, m = m, n = n] {
      const Buffer out = wide_tensor({m, n}, Values(m * n, 0.0));
      linear_backward_weight(out.view(), a.view(), b.view(), stream_);
      return to_doubles(out.view());
    };
    EXPECT_EQ(product(), product());
  }
}

// Ranks that hold a different number of shards have them at other addresses.
TEST_P(MatmulTest, GivesTheSameBitsAtAnyAddress) {
  if (GetParam().device != Device::kCpu) GTEST_SKIP() << "CPU only";
  for (const auto& [m, n, k] : {std::array<int64_t, 3>{1, 1, 7},
                                {7, 5, 3},
                                {1, 300, 64},
                                {33, 16, 129},
                                {64, 96, 128},
                                {100, 257, 65},
                                {130, 48, 1000},
                                {512, 256, 64},
                                {300, 520, 344},
                                {48, 64, 4001}}) {
    const Values a = random_values(m * k, 1), b = random_values(k * n, 2);
    const Values before = random_values(m * n, 3);
    const auto shifted = [](const Buffer& whole, int64_t shift, const Shape& shape) {
      return whole.view().rows(shift, shift + shape.num_elements()).reshaped(shape);
    };
    const auto pad = [](Values values, int64_t shift) {
      values.insert(values.begin(), shift, 0.0);
      return values;
    };
    for (const auto& [transpose_a, transpose_b] :
         {std::array<bool, 2>{false, false}, {false, true}, {true, false}, {true, true}}) {
      for (Accumulate accumulate : {Accumulate::kNo, Accumulate::kYes}) {
        const auto product = [&, m = m, n = n, k = k, transpose_a = transpose_a,
                              transpose_b = transpose_b](int64_t a_shift, int64_t b_shift,
                                                         int64_t out_shift) {
          const Buffer left = tensor({a_shift + m * k}, pad(a, a_shift));
          const Buffer right = tensor({b_shift + k * n}, pad(b, b_shift));
          const Buffer out = wide_tensor({out_shift + m * n}, pad(before, out_shift));
          const TensorView target = shifted(out, out_shift, {m, n});
          matmul(target, shifted(left, a_shift, transpose_a ? Shape{k, m} : Shape{m, k}),
                 transpose_a, shifted(right, b_shift, transpose_b ? Shape{n, k} : Shape{k, n}),
                 transpose_b, accumulate, stream_);
          return to_doubles(target);
        };
        const Values expected = product(0, 0, 0);
        for (const auto& [x, y, z] : {std::array<int64_t, 3>{4, 0, 0},
                                      {0, 4, 0},
                                      {0, 0, 4},
                                      {8, 8, 8},
                                      {16, 4, 8},
                                      {4, 16, 16},
                                      {1, 3, 2}}) {
          EXPECT_EQ(product(x, y, z), expected)
              << m << " x " << n << " x " << k << " transposed " << transpose_a << transpose_b
              << " shifted by " << x << ", " << y << ", " << z;
        }
      }
    }
  }
}

TEST_P(MatmulTest, DoesNotDependOnTheNumberOfThreads) {
  if (GetParam().device != Device::kCpu) GTEST_SKIP() << "CPU only";
  // a weight gradient, whose inner dimension oneDNN would split over threads, and an ordinary one
  for (const auto& [m, n, k] : {std::array<int64_t, 3>{64, 64, 3001}, {515, 130, 64}}) {
    const Buffer a = tensor({k, m}, random_values(m * k, 1));
    const Buffer b = tensor({k, n}, random_values(k * n, 2));
    expect_same_for_any_number_of_threads([&, m = m, n = n] {
      Buffer out = tensor({m, n}, Values(m * n, 0.0));
      matmul(out.view(), a.view(), true, b.view(), false, Accumulate::kNo, stream_);
      return to_doubles(out.view());
    });
  }
}

TEST_P(MatmulTest, LinearForwardMultipliesByTheTransposedWeight) {
  const Values x = random_values(9 * 5, 1), weight = random_values(4 * 5, 2);
  Buffer out = tensor({9, 4}, Values(36, 7.0));
  linear_forward(out.view(), tensor({9, 5}, x).view(), tensor({4, 5}, weight).view(), stream_);
  expect_near(to_doubles(out.view()), oracle(x, false, weight, true, Values(36, 0.0), 9, 4, 5),
              5 * GetParam().tolerance, "out");
}

TEST_P(MatmulTest, LinearBackwardMatchesFiniteDifferences) {
  const Values x = random_values(9 * 5, 1), weight = random_values(4 * 5, 2);
  const Values grad_out = random_values(9 * 4, 3);
  const auto loss = [&](const Values& some_x, const Values& some_weight) {
    return dot(oracle(some_x, false, some_weight, true, Values(36, 0.0), 9, 4, 5), grad_out);
  };
  const Buffer grad_x = tensor({9, 5}, Values(45, 7.0));
  const Buffer grad_weight = wide_tensor({4, 5}, Values(20, 0.5));
  linear_backward_input(grad_x.view(), tensor({9, 4}, grad_out).view(),
                        tensor({4, 5}, weight).view(), Accumulate::kNo, stream_);
  linear_backward_weight(grad_weight.view(), tensor({9, 4}, grad_out).view(),
                         tensor({9, 5}, x).view(), stream_);
  expect_near(to_doubles(grad_x.view()),
              finite_differences([&](const Values& v) { return loss(v, weight); }, x),
              10 * GetParam().tolerance + 1e-8, "grad_x");
  Values expected = finite_differences([&](const Values& v) { return loss(x, v); }, weight);
  for (double& value : expected) value += 0.5;  // weight gradients accumulate
  expect_near(to_doubles(grad_weight.view()), expected, 10 * wide_tolerance() + 1e-8,
              "grad_weight");
}

TEST_P(MatmulTest, LinearBackwardInputCanAccumulate) {
  const Values grad_out = random_values(6, 3), weight = random_values(10, 2);
  Buffer once = tensor({3, 5}, Values(15, 0.0)), added = tensor({3, 5}, Values(15, 2.0));
  const Buffer dy = tensor({3, 2}, grad_out), w = tensor({2, 5}, weight);
  linear_backward_input(once.view(), dy.view(), w.view(), Accumulate::kNo, stream_);
  linear_backward_input(added.view(), dy.view(), w.view(), Accumulate::kYes, stream_);
  Values expected = to_doubles(once.view());
  for (double& value : expected) value += 2;
  expect_near(to_doubles(added.view()), expected, 4 * GetParam().tolerance, "grad_x");
}

TEST_P(MatmulTest, RefusesOperandsThatDisagree) {
  const Buffer a = tensor({2, 4}, Values(8, 0.0)), b = tensor({4, 3}, Values(12, 0.0));
  const Buffer out = tensor({2, 3}, Values(6, 0.0)), cube = tensor({2, 3, 1}, Values(6, 0.0));
  const Buffer integers({2, 3}, DType::kInt32, GetParam().device);
  const auto product = [&](const TensorView& c, const TensorView& x, const TensorView& y) {
    matmul(c, x, false, y, false, Accumulate::kNo, stream_);
  };
  expect_error("a has shape [2, 3, 1], wanted a matrix",
               [&] { product(out.view(), cube.view(), b.view()); });
  expect_error("b has shape [2, 3, 1], wanted a matrix",
               [&] { product(out.view(), a.view(), cube.view()); });
  expect_error("b has shape [2, 4], wanted [4, 4]",
               [&] { product(out.view(), a.view(), a.view()); });
  expect_error("out has shape [2, 4], wanted [2, 3]",
               [&] { product(a.view(), a.view(), b.view()); });
  expect_error("out is int32, wanted", [&] { product(integers.view(), a.view(), b.view()); });
  TensorView elsewhere = out.view();
  elsewhere.device = GetParam().device == Device::kCpu ? Device::kCuda : Device::kCpu;
  expect_error(std::string("out is on ") + to_string(elsewhere.device) + ", wanted " +
                   to_string(GetParam().device),
               [&] { product(elsewhere, a.view(), b.view()); });
  TensorView nowhere = out.view();
  nowhere.data = nullptr;
  expect_error("out [2, 3] has no memory", [&] { product(nowhere, a.view(), b.view()); });
}

TEST(MatmulDispatchTest, RefusesIntegers) {
  const Buffer integers({2, 2}, DType::kInt32);
  expect_error("no kernel for int32 on cpu", [&] {
    matmul(integers.view(), integers.view(), false, integers.view(), false, Accumulate::kNo,
           Stream());
  });
}

TEST(MatmulDispatchTest, RefusesWhatCudaDoesNotHave) {
  const Buffer doubles({2, 2}, DType::kFloat64);
  TensorView gpu = doubles.view();
  gpu.device = Device::kCuda;
#ifdef MIRABELLE_CUDA
  const std::string message = "no kernel for float64 on cuda";
#else
  const std::string message = "no cuda backend";
#endif
  expect_error(message, [&] { matmul(gpu, gpu, false, gpu, false, Accumulate::kNo, Stream()); });
}

MIRABELLE_INSTANTIATE_BACKENDS(MatmulTest);

}  // namespace
}  // namespace mirabelle::testing
