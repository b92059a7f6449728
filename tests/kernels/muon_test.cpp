#include "mirabelle/kernels/muon.h"

#include <array>
#include <optional>

#include "support/backends.h"
#include "support/errors.h"
#include "support/newton_schulz_oracle.h"
#include "support/threads.h"

namespace mirabelle::testing {
namespace {

using Values = std::vector<double>;

/// Ascending, by Jacobi's rotations of the smaller of X X^T and X^T X.
Values singular_values(const Matrix& x) {
  Matrix a = x.rows <= x.columns ? product(x, transposed(x)) : product(transposed(x), x);
  const int64_t n = a.rows;
  for (int sweep = 0; sweep < 30; ++sweep) {
    for (int64_t p = 0; p < n; ++p) {
      for (int64_t q = p + 1; q < n; ++q) {
        const double angle = 0.5 * std::atan2(2 * a.at(p, q), a.at(q, q) - a.at(p, p));
        const double c = std::cos(angle), s = std::sin(angle);
        for (int64_t k = 0; k < n; ++k) {
          const double left = a.at(k, p), right = a.at(k, q);
          a.at(k, p) = c * left - s * right;
          a.at(k, q) = s * left + c * right;
        }
        for (int64_t k = 0; k < n; ++k) {
          const double upper = a.at(p, k), lower = a.at(q, k);
          a.at(p, k) = c * upper - s * lower;
          a.at(q, k) = s * upper + c * lower;
        }
      }
    }
  }
  Values values;
  for (int64_t i = 0; i < n; ++i) values.push_back(std::sqrt(std::max(a.at(i, i), 0.0)));
  std::sort(values.begin(), values.end());
  return values;
}

const MuonStep kStep{
    .learning_rate = 0.01, .momentum = 0.9, .weight_decay = 0.1, .max_grad_norm = 2};

class MuonTest : public BackendTest {
 protected:
  /// Each of `count` matrices [rows, columns] by itself.
  std::vector<Matrix> orthogonalised(int64_t count, int64_t rows, int64_t columns,
                                     const Values& values, int64_t shift = 0) {
    const Shape shape = {count, rows, columns};
    Values shifted = values;
    shifted.insert(shifted.begin(), shift, 7.0);
    const Buffer memory = make_wide_tensor(GetParam(), {shift + shape.num_elements()}, shifted);
    const TensorView x = memory.view().rows(shift, memory.view().shape[0]).reshaped(shape);
    const Values garbage(orthogonalise_scratch(shape), std::nan(""));
    const Buffer scratch =
        make_wide_tensor(GetParam(), {static_cast<int64_t>(garbage.size())}, garbage);
    orthogonalise(x, scratch.view(), stream_);
    const Values all = to_doubles(x);
    std::vector<Matrix> result;
    for (int64_t i = 0; i < count; ++i) {
      const auto begin = all.begin() + i * rows * columns;
      result.push_back({rows, columns, Values(begin, begin + rows * columns)});
    }
    return result;
  }
  Matrix orthogonalised(const Matrix& x) {
    return orthogonalised(1, x.rows, x.columns, x.values).front();
  }

  bool has_master() const { return wide(GetParam().dtype) != GetParam().dtype; }
  /// Of what is in the wide dtype.
  static double tolerance() { return std::min(GetParam().tolerance, 1e-5); }
  /// Of an iteration that multiplies small singular values, and their errors, by 500.
  static double loose_tolerance() { return 300 * tolerance(); }
};

TEST_P(MuonTest, MomentumFollowsTheFormula) {
  for (const int64_t n : {0, 1, 7, 8, 17, 1000, 40001}) {
    for (const std::optional<double> grad_squares : {std::optional<double>(), {1.0}, {16.0}}) {
      SCOPED_TRACE(n);
      const Values grad = random_values(n, 1), before = random_values(n, 2);
      const Buffer exp_avg = make_wide_tensor(GetParam(), {n}, before);
      const Buffer direction = make_wide_tensor(GetParam(), {n}, Values(n, 9.0));
      const Buffer squares = make_tensor(GetParam().device, DType::kFloat64, {1},
                                         Values(1, grad_squares.value_or(0.0)));
      muon_momentum(direction.view(), exp_avg.view(),
                    make_wide_tensor(GetParam(), {n}, grad).view(),
                    grad_squares ? squares.view() : TensorView{}, kStep, stream_);
      const double scale = grad_squares == 16.0 ? 0.5 : 1;
      Values expected_average(n), expected_direction(n);
      for (int64_t i = 0; i < n; ++i) {
        expected_average[i] = 0.9 * before[i] + scale * grad[i];
        expected_direction[i] = scale * grad[i] + 0.9 * expected_average[i];
      }
      expect_near(to_doubles(exp_avg.view()), expected_average, tolerance(), "exp_avg");
      expect_near(to_doubles(direction.view()), expected_direction, tolerance(), "direction");
    }
  }
}

TEST_P(MuonTest, ABadNormChangesNothing) {
  MuonStep step = kStep;
  step.max_good_norm = 4;
  const double inf = std::numeric_limits<double>::infinity();
  for (const double norm : {4.0, std::nextafter(4.0, 5.0), inf, std::nan("")}) {
    const bool is_good = norm == 4.0;
    for (const int64_t n : {0, 1, 8, 1001}) {
      SCOPED_TRACE(n);
      const Values before = random_values(n, 2), weights = random_values(n, 3);
      const Values grad = is_good ? random_values(n, 1) : Values(n, norm);
      const Buffer exp_avg = make_wide_tensor(GetParam(), {n}, before);
      const Buffer direction = make_wide_tensor(GetParam(), {n}, Values(n, 9.0));
      const Buffer parameter = make_tensor(GetParam(), {n}, weights);
      const Buffer master = make_wide_tensor(GetParam(), {n}, weights);
      const Values of_average = to_doubles(exp_avg.view());
      const Values of_parameter = to_doubles(parameter.view());
      const Values of_master = to_doubles(master.view());
      const Buffer squares = make_tensor(GetParam().device, DType::kFloat64, {1},
                                         Values(1, norm == 4.0 ? 16.0 : norm * norm));
      muon_momentum(direction.view(), exp_avg.view(),
                    make_wide_tensor(GetParam(), {n}, grad).view(), squares.view(), step, stream_);
      muon_update(parameter.view(), has_master() ? master.view() : TensorView{}, direction.view(),
                  squares.view(), 5, step, stream_);
      if (n == 0) continue;
      EXPECT_EQ(to_doubles(exp_avg.view()) == of_average, !is_good);
      EXPECT_EQ(to_doubles(direction.view()) == Values(n, 0.0), !is_good);
      EXPECT_EQ(to_doubles(parameter.view()) == of_parameter, !is_good);
      if (has_master()) EXPECT_EQ(to_doubles(master.view()) == of_master, !is_good);
    }
  }
}

TEST_P(MuonTest, UpdateFollowsTheFormula) {
  for (const int64_t n : {0, 1, 7, 8, 17, 1000, 40001}) {
    SCOPED_TRACE(n);
    const Values before = random_values(n, 1), direction = random_values(n, 2);
    const Buffer parameter = make_tensor(GetParam(), {n}, before);
    const Buffer master = make_wide_tensor(GetParam(), {n}, before);
    muon_update(parameter.view(), has_master() ? master.view() : TensorView{},
                make_wide_tensor(GetParam(), {n}, direction).view(), {}, 5, kStep, stream_);
    Values expected(n);
    for (int64_t i = 0; i < n; ++i) {
      expected[i] = before[i] - 0.01 * (5 * direction[i] + 0.1 * before[i]);
    }
    Values actual = to_doubles(has_master() ? master.view() : parameter.view());
    expect_near(actual, expected, tolerance(), "parameter");
    if (!has_master()) continue;
    for (double& value : actual) value = BFloat16(static_cast<float>(value));
    EXPECT_EQ(to_doubles(parameter.view()), actual);
  }
}

TEST_P(MuonTest, AnyCutOfTheElementsGivesTheSameBits) {  // as optimizers sharded over ranks do
  const int64_t n = 1003;
  const auto run = [&](std::vector<int64_t> cuts) {
    const Buffer parameter = make_tensor(GetParam(), {n}, random_values(n, 1));
    const Buffer master = make_wide_tensor(GetParam(), {n}, random_values(n, 1));
    const Buffer exp_avg = make_wide_tensor(GetParam(), {n}, random_values(n, 2));
    const Buffer grad = make_wide_tensor(GetParam(), {n}, random_values(n, 3));
    const Buffer direction = make_wide_tensor(GetParam(), {n}, Values(n, 0.0));
    cuts.push_back(n);
    int64_t begin = 0;
    for (const int64_t end : cuts) {
      const auto part = [&](const Buffer& whole) { return whole.view().rows(begin, end); };
      muon_momentum(part(direction), part(exp_avg), part(grad), {}, kStep, stream_);
      muon_update(part(parameter), has_master() ? part(master) : TensorView{}, part(direction), {},
                  5, kStep, stream_);
      begin = end;
    }
    Values all = to_doubles(has_master() ? master.view() : parameter.view());
    const Values averages = to_doubles(exp_avg.view());
    all.insert(all.end(), averages.begin(), averages.end());
    return all;
  };
  const Values whole = run({});
  EXPECT_EQ(run({3, 500}), whole);
  EXPECT_EQ(run({16, 17, 1000}), whole);
}

TEST_P(MuonTest, OrthogonaliseFollowsTheFormula) {
  for (const auto& [count, rows, columns] : {std::array<int64_t, 3>{1, 1, 1},
                                             {1, 1, 9},
                                             {1, 9, 1},
                                             {3, 7, 5},
                                             {2, 16, 48},
                                             {4, 33, 20},
                                             {1, 64, 130},
                                             {1, 90, 40}}) {
    SCOPED_TRACE(::testing::Message() << count << " of " << rows << " x " << columns);
    const Values values = random_values(count * rows * columns, 1);
    const std::vector<Matrix> actual = orthogonalised(count, rows, columns, values);
    for (int64_t i = 0; i < count; ++i) {
      const auto begin = values.begin() + i * rows * columns;
      const Matrix x{rows, columns, Values(begin, begin + rows * columns)};
      expect_near(actual[i].values, newton_schulz_oracle(x).values, loose_tolerance(), "x");
    }
  }
}

TEST_P(MuonTest, SingularValuesAreNearOne) {
  for (const auto& [rows, columns] :
       {std::array<int64_t, 2>{1, 40}, {40, 1}, {16, 48}, {48, 16}, {60, 90}, {96, 64}}) {
    SCOPED_TRACE(::testing::Message() << rows << " x " << columns);
    const Matrix x{rows, columns, random_values(rows * columns, 5, 1e-6)};
    const Values values = singular_values(orthogonalised(x));
    EXPECT_GT(values.front(), 0.68);
    EXPECT_LT(values.back(), 1.21);
  }
}

TEST_P(MuonTest, ATransposeGivesTheTranspose) {
  const Matrix x{24, 60, random_values(24 * 60, 3)};
  expect_near(orthogonalised(transposed(x)).values, transposed(orthogonalised(x)).values,
              loose_tolerance(), "transpose");
}

TEST_P(MuonTest, TheSizeOfXDoesNotMatter) {  // to the last bit, of powers of two
  const Matrix x{12, 20, random_values(240, 3)};
  const Values expected = orthogonalised(x).values;
  for (const double size : {0x1p-100, 0x1p-30, 0x1p100}) {
    Matrix scaled = x;
    for (double& value : scaled.values) value *= size;
    EXPECT_EQ(orthogonalised(scaled).values, expected);
  }
}

TEST_P(MuonTest, ZerosStayZeros) {
  Values values(3 * 6 * 4, 0.0);
  values[24 + 5] = 2;  // one element of the second of three matrices
  const std::vector<Matrix> result = orthogonalised(3, 6, 4, values);
  EXPECT_EQ(result[0].values, Values(24, 0.0));
  EXPECT_EQ(result[2].values, Values(24, 0.0));
  for (int64_t i = 0; i < 24; ++i) {
    if (i == 5) {
      EXPECT_GT(result[1].values[i], 0.68);
      EXPECT_LT(result[1].values[i], 1.21);
    } else {
      EXPECT_EQ(result[1].values[i], 0);
    }
  }
}

TEST_P(MuonTest, NothingIsDoneToNothing) {
  for (const auto& [count, rows, columns] :
       {std::array<int64_t, 3>{0, 3, 4}, {2, 0, 4}, {2, 3, 0}}) {
    for (const Matrix& x : orthogonalised(count, rows, columns, {})) EXPECT_TRUE(x.values.empty());
  }
}

// Ranks that hold a different number of shards have their matrices at other addresses.
TEST_P(MuonTest, GivesTheSameBitsAtAnyAddressInAnyBatch) {
  if (GetParam().device != Device::kCpu) GTEST_SKIP() << "CPU only";
  for (const auto& [count, rows, columns] :
       {std::array<int64_t, 3>{3, 24, 6}, {2, 64, 96}, {2, 80, 24}, {2, 7, 150}}) {
    const Values values = random_values(count * rows * columns, 1);
    const std::vector<Matrix> expected = orthogonalised(count, rows, columns, values);
    for (const int64_t shift : {1, 4, 8, 13, 16}) {
      for (int64_t i = 0; i < count; ++i) {
        const auto begin = values.begin() + i * rows * columns;
        const Values alone(begin, begin + rows * columns);
        EXPECT_EQ(orthogonalised(1, rows, columns, alone, shift).front().values,
                  expected[i].values);
      }
    }
  }
}

TEST_P(MuonTest, DoesNotDependOnTheNumberOfThreads) {
  if (GetParam().device != Device::kCpu) GTEST_SKIP() << "CPU only";
  const Values values = random_values(2 * 130 * 200, 1);
  expect_same_for_any_number_of_threads([&] {
    const std::vector<Matrix> result = orthogonalised(2, 130, 200, values);
    Values all = result[0].values;
    all.insert(all.end(), result[1].values.begin(), result[1].values.end());
    return all;
  });
}

TEST_P(MuonTest, AStepMovesElementsByAFifthOfTheLearningRate) {
  for (const auto& [rows, columns] : {std::array<int64_t, 2>{16, 64}, {64, 16}}) {
    const Matrix x = orthogonalised({rows, columns, random_values(rows * columns, 2)});
    double squares = 0;
    for (const double value : x.values) squares += value * value;
    const double mean_square = squares / static_cast<double>(rows * columns);
    EXPECT_NEAR(muon_scale(rows, columns) * std::sqrt(mean_square), 0.2, 0.05);
  }
}

TEST_P(MuonTest, RefusesOperandsThatDisagree) {
  const Buffer four = make_wide_tensor(GetParam(), {4}, Values(4, 0.0));
  const Buffer three = make_wide_tensor(GetParam(), {3}, Values(3, 0.0));
  const Buffer narrow = make_tensor(GetParam(), {4}, Values(4, 0.0));
  const Buffer integers = make_int_tensor(GetParam(), {1});
  const TensorView a = four.view(), b = three.view(), p = narrow.view();
  const TensorView master = has_master() ? a : TensorView{};
  const auto momentum = [&](const TensorView& direction, const TensorView& exp_avg,
                            const TensorView& grad, const MuonStep& step) {
    muon_momentum(direction, exp_avg, grad, {}, step, stream_);
  };
  expect_error("direction has shape [3], wanted [4]", [&] { momentum(b, a, a, kStep); });
  expect_error("exp_avg has shape [3], wanted [4]", [&] { momentum(a, b, a, kStep); });
  expect_error("grad has shape [2, 2], wanted [n]", [&] {
    momentum(a, a, a.reshaped({2, 2}), kStep);
  });
  expect_error("grad_squares is int32, wanted float64",
               [&] { muon_momentum(a, a, a, integers.view(), kStep, stream_); });
  for (const double wrong : {-0.1, 1.0}) {
    MuonStep step = kStep;
    step.momentum = wrong;
    expect_error("wants a momentum in [0, 1)", [&] { momentum(a, a, a, step); });
  }
  expect_error("direction has shape [3], wanted [4]",
               [&] { muon_update(p, master, b, {}, 1, kStep, stream_); });
  expect_error("parameter has shape [2, 2], wanted [n]", [&] {
    muon_update(p.reshaped({2, 2}), master, a, {}, 1, kStep, stream_);
  });
  expect_error(has_master() ? "needs a master copy" : "has no master copy",
               [&] { muon_update(p, has_master() ? TensorView{} : a, a, {}, 1, kStep, stream_); });
  expect_error("x has shape [4], wanted [count,", [&] { orthogonalise(a, a, stream_); });
  const Buffer scratch = make_wide_tensor(GetParam(), {11}, Values(11, 0.0));
  expect_error("scratch has shape [11], wanted at least [12]", [&] {
    orthogonalise(a.reshaped({1, 2, 2}), scratch.view(), stream_);
  });
  if (!has_master()) return;
  const Buffer enough = make_wide_tensor(GetParam(), {12}, Values(12, 0.0));
  expect_error("scratch is float32, wanted bfloat16", [&] {
    orthogonalise(p.reshaped({1, 2, 2}), enough.view(), stream_);
  });
  expect_error("no kernel for bfloat16", [&] {
    const Buffer narrow_scratch = empty_tensor(GetParam(), {12});
    orthogonalise(p.reshaped({1, 2, 2}), narrow_scratch.view(), stream_);
  });
}

MIRABELLE_INSTANTIATE_BACKENDS(MuonTest);

}  // namespace
}  // namespace mirabelle::testing
