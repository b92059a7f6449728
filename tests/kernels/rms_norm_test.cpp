#include "mirabelle/kernels/rms_norm.h"

#include "support/backends.h"
#include "support/dropout_oracle.h"
#include "support/errors.h"
#include "support/threads.h"

namespace mirabelle::testing {
namespace {

using Values = std::vector<double>;
constexpr double kEpsilon = 1e-5;

struct Forward {
  Values residual_out, rstd, out;
};
struct Backward {
  Values grad_residual, grad_branch, grad_weight;
};

class RmsNormTest : public BackendTest {
 protected:
  Dropout dropout(double rate, const std::vector<int32_t>& lengths) {
    coordinates_ = packed_coordinates(lengths, 11);
    sequence_ids_ = make_int_tensor(GetParam(), coordinates_.sequence_ids);
    positions_ = make_int_tensor(GetParam(), coordinates_.positions);
    key_ = make_key(GetParam(), kDropoutKey);
    return {rate, key_.view(), sequence_ids_.view(), positions_.view()};
  }

  Forward oracle(const Values& residual, const Values& branch, const Values& weight,
                 const Dropout& dropout) const {
    const size_t hidden_size = weight.size();
    Forward result{residual, {}, Values(residual.size())};
    for (size_t t = 0; t < residual.size() / hidden_size; ++t) {
      double* x = &result.residual_out[t * hidden_size];
      double squares = 0;
      for (size_t i = 0; i < hidden_size; ++i) {
        if (!branch.empty()) {
          const double keep = dropout.rate == 0 ? 1
                                                : oracle_keep(dropout, coordinates_.sequence_ids[t],
                                                              coordinates_.positions[t], i);
          x[i] += keep * branch[t * hidden_size + i];
        }
        squares += x[i] * x[i];
      }
      result.rstd.push_back(std::pow(squares / hidden_size + kEpsilon, -0.5));
      for (size_t i = 0; i < hidden_size; ++i) {
        result.out[t * hidden_size + i] = x[i] * result.rstd[t] * weight[i];
      }
    }
    return result;
  }

  Buffer tensor(const Shape& shape, const Values& values) {
    return make_tensor(GetParam(), shape, values);
  }
  Buffer wide_tensor(const Shape& shape, const Values& values) {
    return make_wide_tensor(GetParam(), shape, values);
  }
  /// Of statistics and weight gradients.
  static double wide_tolerance() {
    return GetParam().dtype == DType::kBFloat16 ? 1e-5 : GetParam().tolerance;
  }

  /// An empty branch stands for none.
  Forward forward(const Values& residual, const Values& branch, const Values& weight,
                  const Dropout& dropout, bool in_place = false) {
    const int64_t h = static_cast<int64_t>(weight.size());
    const int64_t n = static_cast<int64_t>(residual.size()) / h;
    const Buffer x = tensor({n, h}, residual),
                 b = tensor({n, h}, branch.empty() ? residual : branch);
    const Buffer sum = empty_tensor(GetParam(), {n, h}), out = empty_tensor(GetParam(), {n, h});
    const Buffer rstd = empty_wide_tensor(GetParam(), {n});
    const TensorView& target = in_place ? x.view() : sum.view();
    residual_rms_norm_forward(out.view(), branch.empty() ? TensorView{} : target, rstd.view(),
                              x.view(), branch.empty() ? TensorView{} : b.view(),
                              tensor({h}, weight).view(), kEpsilon, dropout, stream_);
    return {to_doubles(branch.empty() ? x.view() : target), to_doubles(rstd.view()),
            to_doubles(out.view())};
  }

  Backward backward(const Forward& saved, bool with_branch, const Values& grad_residual,
                    const Values& grad_weight, const Values& grad_out, const Values& weight,
                    const Dropout& dropout) {
    const int64_t h = static_cast<int64_t>(weight.size());
    const int64_t n = static_cast<int64_t>(saved.rstd.size());
    const Buffer dx = tensor({n, h}, grad_residual), dw = wide_tensor({h}, grad_weight);
    const Buffer db = tensor({n, h}, Values(n * h, 5.0));
    const int64_t chunks = num_token_chunks(n);
    const Buffer workspace = wide_tensor({chunks, h}, Values(chunks * h, 9.0));
    residual_rms_norm_backward(dx.view(), with_branch ? db.view() : TensorView{}, dw.view(),
                               tensor({n, h}, grad_out).view(),
                               tensor({n, h}, saved.residual_out).view(),
                               wide_tensor({n}, saved.rstd).view(), tensor({h}, weight).view(),
                               dropout, workspace.view(), stream_);
    return {to_doubles(dx.view()), to_doubles(db.view()), to_doubles(dw.view())};
  }

  void expect_formula(int64_t n, int64_t h, bool with_branch, double rate) {
    SCOPED_TRACE(::testing::Message() << n << " tokens of " << h);
    const Values residual = random_values(n * h, 1), weight = random_values(h, 3);
    const Values branch = with_branch ? random_values(n * h, 2) : Values{};
    const Dropout some = dropout(rate, {static_cast<int32_t>(n)});
    const Forward actual = forward(residual, branch, weight, some);
    expect_near(actual.residual_out, oracle(residual, branch, weight, some).residual_out,
                GetParam().tolerance, "residual_out");
    // what is normalised is the sum as it was rounded to the dtype
    const Forward expected = oracle(actual.residual_out, {}, weight, {});
    expect_near(actual.rstd, expected.rstd, wide_tolerance(), "rstd");
    expect_near(actual.out, expected.out, 2 * GetParam().tolerance, "out");
  }

  /// grad_residual starts as the gradient that reaches residual_out from later layers.
  void expect_finite_differences(bool with_branch, double rate) {
    const int64_t n = 5, h = 7;
    const Values residual = random_values(n * h, 1), weight = random_values(h, 3);
    const Values branch = with_branch ? random_values(n * h, 2) : Values{};
    const Values grad_out = random_values(n * h, 4), later = random_values(n * h, 5);
    const Dropout some = dropout(rate, {2, 3});
    const auto loss = [&](const Values& x, const Values& b, const Values& w) {
      const Forward f = oracle(x, b, w, some);
      return dot(f.out, grad_out) + dot(f.residual_out, later);
    };
    const Backward actual = backward(oracle(residual, branch, weight, some), with_branch, later,
                                     Values(h, 0.5), grad_out, weight, some);
    // in bfloat16 residual_out is rounded, which all gradients depend on
    const double tolerance = 10 * GetParam().tolerance + 1e-8;
    expect_near(
        actual.grad_residual,
        finite_differences([&](const Values& v) { return loss(v, branch, weight); }, residual),
        tolerance, "grad_residual");
    if (with_branch) {
      expect_near(
          actual.grad_branch,
          finite_differences([&](const Values& v) { return loss(residual, v, weight); }, branch),
          tolerance, "grad_branch");
    }
    Values grad_weight =
        finite_differences([&](const Values& v) { return loss(residual, branch, v); }, weight);
    for (double& value : grad_weight) value += 0.5;  // accumulates
    expect_near(actual.grad_weight, grad_weight, tolerance, "grad_weight");
  }

  Coordinates coordinates_;
  Buffer sequence_ids_, positions_, key_;
};

TEST_P(RmsNormTest, ForwardFollowsTheFormula) {
  for (const auto& [n, h] : {std::array<int64_t, 2>{1, 1},
                             {7, 5},
                             {3, 128},
                             {1, 1000},
                             {1000, 33},
                             {9, 512},
                             {5, 2048},
                             {3, 4001},
                             {2, 4096}}) {
    expect_formula(n, h, true, 0);
  }
}

TEST_P(RmsNormTest, ForwardWithDropoutFollowsTheFormula) {
  for (const auto& [n, h] : {std::array<int64_t, 2>{1, 1}, {7, 5}, {3, 128}, {9, 300}}) {
    expect_formula(n, h, true, 0.3);
  }
}

TEST_P(RmsNormTest, ForwardWithoutABranchNormalisesTheResidual) {
  for (const auto& [n, h] : {std::array<int64_t, 2>{1, 1}, {7, 5}, {300, 129}}) {
    expect_formula(n, h, false, 0);
    expect_formula(n, h, false, 0.3);  // there is nothing to drop
  }
}

TEST_P(RmsNormTest, ResidualOutMayBeTheResidual) {
  for (int64_t h : {131, 136}) {
    const Values residual = random_values(20 * h, 1), branch = random_values(20 * h, 2);
    const Values weight = random_values(h, 3);
    const Dropout some = dropout(0.2, {20});
    const Forward apart = forward(residual, branch, weight, some, false);
    const Forward in_place = forward(residual, branch, weight, some, true);
    EXPECT_EQ(in_place.residual_out, apart.residual_out);
    EXPECT_EQ(in_place.out, apart.out);
    EXPECT_EQ(in_place.rstd, apart.rstd);
  }
}

TEST_P(RmsNormTest, ZerosStayFinite) {
  const Forward result = forward(Values(10, 0.0), {}, Values(5, 1.0), {});
  EXPECT_EQ(result.out, Values(10, 0.0));
  expect_near(result.rstd, Values(2, 1 / std::sqrt(kEpsilon)), wide_tolerance(), "rstd");
}

TEST_P(RmsNormTest, TakesNoTokens) {
  EXPECT_TRUE(forward({}, {}, {1, 2}, {}).out.empty());
  const Backward result = backward({{}, {}, {}}, true, {}, {3, 4}, {}, {1, 2}, {});
  EXPECT_EQ(result.grad_weight, (Values{3, 4}));
}

TEST_P(RmsNormTest, BackwardMatchesFiniteDifferences) { expect_finite_differences(true, 0); }

TEST_P(RmsNormTest, BackwardWithDropoutMatchesFiniteDifferences) {
  expect_finite_differences(true, 0.4);
}

TEST_P(RmsNormTest, BackwardWithoutABranchMatchesFiniteDifferences) {
  expect_finite_differences(false, 0);
}

TEST_P(RmsNormTest, BackwardFollowsTheFormulaForRowsOfAllSizes) {
  for (const auto& [n, h] : {std::array<int64_t, 2>{1, 1},
                             {150, 7},
                             {150, 128},
                             {9, 300},
                             {150, 512},
                             {9, 1000},
                             {130, 2048},
                             {9, 4001},
                             {9, 4096}}) {
    SCOPED_TRACE(::testing::Message() << n << " tokens of " << h);
    const Values x = random_values(n * h, 1), weight = random_values(h, 3);
    const Values dy = random_values(n * h, 4), later = random_values(n * h, 5);
    const Dropout some = dropout(0.4, {static_cast<int32_t>(n)});
    const Forward saved = oracle(x, {}, weight, {});
    Backward expected{later, Values(n * h), Values(h, 0.5)};
    for (int64_t t = 0; t < n; ++t) {
      const double r = saved.rstd[t];
      double projection = 0;
      for (int64_t i = 0; i < h; ++i) projection += dy[t * h + i] * weight[i] * x[t * h + i];
      for (int64_t i = 0; i < h; ++i) {
        const int64_t at = t * h + i;
        expected.grad_residual[at] += r * weight[i] * dy[at] - x[at] * r * r * r / h * projection;
        expected.grad_branch[at] =
            expected.grad_residual[at] *
            oracle_keep(some, coordinates_.sequence_ids[t], coordinates_.positions[t], i);
        expected.grad_weight[i] += dy[at] * x[at] * r;
      }
    }
    const Backward actual = backward(saved, true, later, Values(h, 0.5), dy, weight, some);
    expect_near(actual.grad_residual, expected.grad_residual, 4 * GetParam().tolerance,
                "grad_residual");
    expect_near(actual.grad_branch, expected.grad_branch, 4 * GetParam().tolerance, "grad_branch");
    expect_near(actual.grad_weight, expected.grad_weight, 10 * wide_tolerance(), "grad_weight");
  }
}

TEST_P(RmsNormTest, BackwardOfManyTokensSumsAllChunks) {
  const int64_t n = 1000, h = 19;
  const Values residual = random_values(n * h, 1), weight = random_values(h, 3);
  const Values grad_out = random_values(n * h, 4);
  const Forward saved = oracle(residual, {}, weight, {});
  Values expected(h, 0.0);
  for (int64_t i = 0; i < n * h; ++i) {
    expected[i % h] += grad_out[i] * residual[i] * saved.rstd[i / h];
  }
  const Backward actual =
      backward(saved, false, Values(n * h, 0.0), Values(h, 0.0), grad_out, weight, {});
  expect_near(actual.grad_weight, expected, 10 * wide_tolerance(), "grad_weight");
}

TEST_P(RmsNormTest, ForwardAndBackwardDropTheSameElements) {
  const int64_t n = 50, h = 200;
  const Values zeros(n * h, 0.0), ones(n * h, 1.0), weight(h, 0.0);
  const Dropout some = dropout(0.5, {20, 30});
  const Forward result = forward(zeros, ones, weight, some);
  const Backward grads = backward(result, true, ones, weight, zeros, weight, some);
  EXPECT_EQ(grads.grad_branch, result.residual_out);
  EXPECT_EQ(grads.grad_residual, ones);
}

TEST_P(RmsNormTest, GivesTheSameBitsEveryTime) {
  for (int64_t h : {131, 512}) {
    const int64_t n = 1001;
    const Values residual = random_values(n * h, 1), branch = random_values(n * h, 2);
    const Values weight = random_values(h, 3), grad_out = random_values(n * h, 4);
    const Dropout some = dropout(0.2, {1000, 1});
    const Forward saved = forward(residual, branch, weight, some);
    const Forward again = forward(residual, branch, weight, some);
    EXPECT_EQ(again.out, saved.out);
    EXPECT_EQ(again.rstd, saved.rstd);
    const Backward first = backward(saved, true, residual, weight, grad_out, weight, some);
    const Backward second = backward(saved, true, residual, weight, grad_out, weight, some);
    EXPECT_EQ(second.grad_residual, first.grad_residual);
    EXPECT_EQ(second.grad_branch, first.grad_branch);
    EXPECT_EQ(second.grad_weight, first.grad_weight);
  }
}

TEST_P(RmsNormTest, DoesNotDependOnTheNumberOfThreads) {
  if (GetParam().device != Device::kCpu) GTEST_SKIP() << "CPU only";
  const int64_t n = 333, h = 131;
  const Values residual = random_values(n * h, 1), branch = random_values(n * h, 2);
  const Values weight = random_values(h, 3), grad_out = random_values(n * h, 4);
  const Dropout some = dropout(0.2, {300, 33});
  const Forward saved = forward(residual, branch, weight, some);
  const auto grads = [&] {
    return backward(saved, true, residual, weight, grad_out, weight, some);
  };
  expect_same_for_any_number_of_threads(
      [&] { return forward(residual, branch, weight, some).out; });
  expect_same_for_any_number_of_threads([&] { return grads().grad_residual; });
  expect_same_for_any_number_of_threads([&] { return grads().grad_branch; });
  expect_same_for_any_number_of_threads([&] { return grads().grad_weight; });
}

TEST_P(RmsNormTest, ForwardRefusesOperandsThatDisagree) {
  const Buffer matrix = tensor({2, 4}, Values(8, 1.0)), row = tensor({4}, Values(4, 1.0));
  const Buffer pair = wide_tensor({2}, Values(2, 1.0));
  const TensorView x = matrix.view(), w = row.view(), r = pair.view(), bad = x.reshaped({4, 2});
  const auto run = [&](const TensorView& out, const TensorView& sum, const TensorView& rstd,
                       const TensorView& residual, const TensorView& branch,
                       const TensorView& weight) {
    residual_rms_norm_forward(out, sum, rstd, residual, branch, weight, kEpsilon, {}, stream_);
  };
  expect_error("residual has shape [8], wanted", [&] { run(x, x, r, x.reshaped({8}), x, w); });
  expect_error("out has shape [4, 2], wanted", [&] { run(bad, x, r, x, x, w); });
  expect_error("rstd has shape [4], wanted [2]", [&] { run(x, x, w, x, x, w); });
  expect_error("weight has shape [2], wanted [4]", [&] { run(x, x, r, x, x, r); });
  expect_error("branch has shape [4, 2], wanted", [&] { run(x, x, r, x, bad, w); });
  expect_error("residual_out has shape [], wanted [2, 4]", [&] { run(x, {}, r, x, x, w); });
  const Buffer nothing = tensor({2, 0}, {}), no_weight = tensor({0}, {});
  const TensorView e = nothing.view();
  expect_error("hidden_size is 0", [&] { run(e, e, r, e, e, no_weight.view()); });
}

TEST_P(RmsNormTest, BackwardRefusesOperandsThatDisagree) {
  const Buffer matrix = tensor({2, 4}, Values(8, 1.0)), row = tensor({4}, Values(4, 1.0));
  const Buffer other = tensor({2, 4}, Values(8, 1.0)), pair = wide_tensor({2}, Values(2, 1.0));
  const Buffer wide_row = wide_tensor({4}, Values(4, 1.0));
  const Buffer workspace = wide_tensor({1, 4}, Values(4, 1.0));
  const TensorView x = matrix.view(), w = row.view(), r = pair.view(), bad = x.reshaped({4, 2});
  const TensorView y = other.view(), dw = wide_row.view(), chunk = workspace.view();
  const auto run = [&](const TensorView& dx, const TensorView& db, const TensorView& dw,
                       const TensorView& dy, const TensorView& residual, const TensorView& rstd,
                       const TensorView& weight, const TensorView& workspace) {
    residual_rms_norm_backward(dx, db, dw, dy, residual, rstd, weight, {}, workspace, stream_);
  };
  run(y, {}, dw, x, x, r, w, chunk);
  expect_error("residual_out has shape [8], wanted",
               [&] { run(y, {}, dw, x, x.reshaped({8}), r, w, chunk); });
  expect_error("grad_residual has shape [4, 2]", [&] { run(bad, {}, dw, x, x, r, w, chunk); });
  expect_error("grad_branch has shape [4, 2]", [&] { run(y, bad, dw, x, x, r, w, chunk); });
  expect_error("grad_branch may not be grad_residual", [&] { run(y, y, dw, x, x, r, w, chunk); });
  expect_error("grad_weight has shape [2]", [&] { run(y, {}, r, x, x, r, w, chunk); });
  expect_error("grad_out has shape [4, 2]", [&] { run(y, {}, dw, bad, x, r, w, chunk); });
  expect_error("rstd has shape [4]", [&] { run(y, {}, dw, x, x, w, w, chunk); });
  expect_error("weight has shape [2]", [&] { run(y, {}, dw, x, x, r, r, chunk); });
  expect_error("workspace has shape [2, 4], wanted [1, 4]", [&] { run(y, {}, dw, x, x, r, w, x); });
}

#ifdef MIRABELLE_CUDA
TEST_P(RmsNormTest, RefusesRowsThatAWarpCannotKeep) {
  if (GetParam().device != Device::kCuda) GTEST_SKIP() << "CUDA only";
  const Buffer matrix = tensor({1, 4097}, Values(4097, 1.0));
  const Buffer row = tensor({4097}, Values(4097, 1.0)), one = wide_tensor({1}, {1});
  const TensorView x = matrix.view();
  expect_error("hidden_size is 4097, wanted at most 4096", [&] {
    residual_rms_norm_forward(x, {}, one.view(), x, {}, row.view(), kEpsilon, {}, stream_);
  });
}
#endif

TEST(NumTokenChunksTest, DependsOnTheNumberOfTokensOnly) {
  EXPECT_EQ(num_token_chunks(0), 1);
  EXPECT_EQ(num_token_chunks(127), 1);
  EXPECT_EQ(num_token_chunks(128), 2);
  EXPECT_EQ(num_token_chunks(1000000), 64);
}

MIRABELLE_INSTANTIATE_BACKENDS(RmsNormTest);

}  // namespace
}  // namespace mirabelle::testing
