#include "mirabelle/kernels/adamw.h"

#include <optional>
#include <string>

#include "support/backends.h"
#include "support/errors.h"
#include "support/threads.h"

namespace mirabelle::testing {
namespace {

using Values = std::vector<double>;

/// `parameter` is the master copy where the parameter has one.
struct State {
  Values parameter, exp_avg, exp_avg_sq;
};

State some_state(int64_t n) {
  State state{random_values(n, 1), random_values(n, 2, 0.1), random_values(n, 3, 0.1)};
  for (double& v : state.exp_avg_sq) v *= v;
  return state;
}

const AdamWStep kStep{.learning_rate = 0.01,
                      .beta1 = 0.9,
                      .beta2 = 0.98,
                      .epsilon = 1e-8,
                      .weight_decay = 0.1,
                      .max_grad_norm = 2,
                      .step = 3};
/// With which kStep halves the gradients.
constexpr double kGradSquares = 16;

/// Algorithm 2 of Loshchilov & Hutter 2019, with the schedule's multiplier inside learning_rate and
/// the gradient scaled down to the largest norm.
void oracle(State& state, const Values& grad, const AdamWStep& step,
            double grad_squares = kGradSquares) {
  const double scale = std::min(1.0, step.max_grad_norm / std::sqrt(grad_squares));
  for (size_t i = 0; i < grad.size(); ++i) {
    const double g = grad[i] * scale;
    double &m = state.exp_avg[i], &v = state.exp_avg_sq[i], &p = state.parameter[i];
    m = step.beta1 * m + (1 - step.beta1) * g;
    v = step.beta2 * v + (1 - step.beta2) * g * g;
    const double m_hat = m / (1 - std::pow(step.beta1, step.step));
    const double v_hat = v / (1 - std::pow(step.beta2, step.step));
    p -= step.learning_rate * (m_hat / (std::sqrt(v_hat) + step.epsilon) + step.weight_decay * p);
  }
}

class AdamWTest : public BackendTest {
 protected:
  static bool has_master() { return wide(GetParam().dtype) != GetParam().dtype; }

  /// The state after one update per gradient, step numbers from step.step on. Without grad_squares
  /// the kernel gets none.
  State run(const State& before, const std::vector<Values>& grads, AdamWStep step,
            std::optional<double> grad_squares = kGradSquares) {
    const int64_t n = static_cast<int64_t>(before.parameter.size());
    const Buffer parameter = make_tensor(GetParam(), {n}, before.parameter);
    const Buffer master = make_wide_tensor(GetParam(), {n}, before.parameter);
    const Buffer exp_avg = make_wide_tensor(GetParam(), {n}, before.exp_avg);
    const Buffer exp_avg_sq = make_wide_tensor(GetParam(), {n}, before.exp_avg_sq);
    const Buffer squares =
        make_tensor(GetParam().device, DType::kFloat64, {1}, Values(1, grad_squares.value_or(0.0)));
    for (const Values& grad : grads) {
      adamw_update(parameter.view(), has_master() ? master.view() : TensorView{}, exp_avg.view(),
                   exp_avg_sq.view(), make_wide_tensor(GetParam(), {n}, grad).view(),
                   grad_squares ? squares.view() : TensorView{}, step, stream_);
      ++step.step;
    }
    const State after{to_doubles(has_master() ? master.view() : parameter.view()),
                      to_doubles(exp_avg.view()), to_doubles(exp_avg_sq.view())};
    if (has_master()) {
      Values rounded = after.parameter;
      for (double& value : rounded) value = BFloat16(static_cast<float>(value));
      EXPECT_EQ(to_doubles(parameter.view()), rounded);
    }
    return after;
  }

  /// What is compared is in the wide dtype.
  static double tolerance() { return has_master() ? 1e-5 : GetParam().tolerance; }

  void expect_state(const State& actual, const State& expected) {
    expect_near(actual.parameter, expected.parameter, tolerance(), "parameter");
    expect_near(actual.exp_avg, expected.exp_avg, tolerance(), "exp_avg");
    expect_near(actual.exp_avg_sq, expected.exp_avg_sq, tolerance(), "exp_avg_sq");
  }
  void expect_same_bits(const State& actual, const State& expected) {
    EXPECT_EQ(actual.parameter, expected.parameter);
    EXPECT_EQ(actual.exp_avg, expected.exp_avg);
    EXPECT_EQ(actual.exp_avg_sq, expected.exp_avg_sq);
  }
};

TEST_P(AdamWTest, OneStepFollowsTheFormula) {
  for (int64_t n : {0, 1, 7, 8, 17, 1000, 40001}) {
    SCOPED_TRACE(n);
    const Values grad = random_values(n, 4);
    State expected = some_state(n);
    const State actual = run(expected, {grad}, kStep);
    oracle(expected, grad, kStep);
    expect_state(actual, expected);
  }
}

TEST_P(AdamWTest, TenStepsFromZeroFollowTheFormula) {
  AdamWStep step = kStep;
  step.step = 1;
  State expected{random_values(33, 1), Values(33, 0.0), Values(33, 0.0)};
  std::vector<Values> grads;
  for (uint64_t i = 0; i < 10; ++i) grads.push_back(random_values(33, 100 + i));
  const State actual = run(expected, grads, step);
  for (const Values& grad : grads) {
    oracle(expected, grad, step);
    ++step.step;
  }
  expect_state(actual, expected);
}

TEST_P(AdamWTest, ABadNormChangesNothing) {
  AdamWStep step = kStep;
  step.max_good_norm = 4;
  for (const int64_t n : {0, 1, 8, 1001}) {
    SCOPED_TRACE(n);
    const Values grad = random_values(n, 4);
    AdamWStep unlimited = kStep;
    unlimited.learning_rate = unlimited.weight_decay = 0;  // keeps the parameter, in its dtype
    const State before{run(some_state(n), {}, unlimited)};
    expect_same_bits(run(before, {grad}, step, 16), run(before, {grad}, kStep, 16));
    for (const double bad : {16.001, std::numeric_limits<double>::infinity(), std::nan("")}) {
      expect_same_bits(run(before, {Values(n, bad)}, step, bad), before);
    }
    // without a limit only what is not finite
    expect_same_bits(run(before, {grad}, kStep, std::nan("")), before);
    expect_same_bits(run(before, {grad}, kStep, std::numeric_limits<double>::infinity()), before);
    if (n > 0) EXPECT_NE(run(before, {grad}, kStep, 1e300).exp_avg, before.exp_avg);
  }
}

TEST_P(AdamWTest, GradientsAreScaledDownToTheLargestNorm) {
  const State before = some_state(100);
  const Values grad = random_values(100, 4);
  Values half = grad;
  for (double& value : half) value /= 2;
  expect_same_bits(run(before, {grad}, kStep, 16), run(before, {half}, kStep, std::nullopt));
  for (double grad_squares : {4.5, 1000.0, 1e20}) {
    State expected = before;
    oracle(expected, grad, kStep, grad_squares);
    expect_state(run(before, {grad}, kStep, grad_squares), expected);
  }
}

TEST_P(AdamWTest, GradientsWithinTheLargestNormAreNotScaled) {
  const State before = some_state(100);
  const Values grad = random_values(100, 4);
  const State unscaled = run(before, {grad}, kStep, std::nullopt);
  State expected = before;
  oracle(expected, grad, kStep, 0);
  expect_state(unscaled, expected);
  for (double grad_squares : {0.0, 3.9, 4.0}) {
    expect_same_bits(run(before, {grad}, kStep, grad_squares), unscaled);
  }
  AdamWStep unlimited = kStep;
  unlimited.max_grad_norm = AdamWStep().max_grad_norm;
  expect_same_bits(run(before, {grad}, unlimited, 1e20), unscaled);
}

TEST_P(AdamWTest, FirstStepMovesByTheLearningRateWhateverTheGradientsSize) {
  const State zero{Values(3, 0.0), Values(3, 0.0), Values(3, 0.0)};
  const AdamWStep first{.learning_rate = 0.25};
  expect_near(run(zero, {{1000, -1, 1e-3}}, first).parameter, {-0.25, 0.25, -0.25}, 1e-4,
              "parameter");
}

TEST_P(AdamWTest, WithoutGradientOnlyDecays) {
  const State before{{2, -4}, {0, 0}, {0, 0}};
  expect_near(run(before, {{0, 0}}, kStep).parameter, {2 - 0.002, -4 + 0.004}, tolerance(),
              "parameter");
}

TEST_P(AdamWTest, MinimisesAParabola) {
  State state{{5, -3}, {0, 0}, {0, 0}};
  for (int64_t i = 1; i <= 400; ++i) {
    state = run(state, {{state.parameter[0] - 1, state.parameter[1] - 2}},
                {.learning_rate = 0.1, .step = i});
  }
  EXPECT_NEAR(state.parameter[0], 1, 0.02);
  EXPECT_NEAR(state.parameter[1], 2, 0.02);
}

TEST_P(AdamWTest, UpdatingARangeInPiecesIsTheSame) {  // as optimizers sharded over ranks do
  const int64_t n = 10007;
  const Values grad = random_values(n, 4);
  const State before = some_state(n), whole = run(before, {grad}, kStep);
  for (int64_t cut : {1, 13, 5003}) {
    const auto piece = [&](const Values& x, int64_t begin, int64_t end) {
      return Values(x.begin() + begin, x.begin() + end);
    };
    const auto part = [&](int64_t begin, int64_t end) {
      return run({piece(before.parameter, begin, end), piece(before.exp_avg, begin, end),
                  piece(before.exp_avg_sq, begin, end)},
                 {piece(grad, begin, end)}, kStep)
          .parameter;
    };
    Values joined = part(0, cut);
    const Values rest = part(cut, n);
    joined.insert(joined.end(), rest.begin(), rest.end());
    EXPECT_EQ(joined, whole.parameter);
  }
}

TEST_P(AdamWTest, RangesMayBeginAnywhere) {  // not only where 16 bytes do
  const int64_t n = 100, begin = 3, end = 90;
  const Values grad = random_values(n, 4);
  const State before = some_state(n);
  State expected = before;
  oracle(expected, grad, kStep);
  const Buffer parameter = make_tensor(GetParam(), {n}, before.parameter);
  const Buffer master = make_wide_tensor(GetParam(), {n}, before.parameter);
  const Buffer exp_avg = make_wide_tensor(GetParam(), {n}, before.exp_avg);
  const Buffer exp_avg_sq = make_wide_tensor(GetParam(), {n}, before.exp_avg_sq);
  const Buffer gradient = make_wide_tensor(GetParam(), {n}, grad);
  const Buffer squares =
      make_tensor(GetParam().device, DType::kFloat64, {1}, Values(1, kGradSquares));
  adamw_update(parameter.view().rows(begin, end),
               has_master() ? master.view().rows(begin, end) : TensorView{},
               exp_avg.view().rows(begin, end), exp_avg_sq.view().rows(begin, end),
               gradient.view().rows(begin, end), squares.view(), kStep, stream_);
  const Values actual = to_doubles(has_master() ? master.view() : parameter.view());
  for (int64_t i = 0; i < n; ++i) {
    const bool inside = i >= begin && i < end;
    EXPECT_NEAR(actual[i], inside ? expected.parameter[i] : before.parameter[i],
                tolerance() * (1 + std::abs(expected.parameter[i])))
        << i;
  }
}

TEST_P(AdamWTest, DoesNotDependOnTheNumberOfThreads) {
  if (GetParam().device != Device::kCpu) GTEST_SKIP() << "CPU only";
  const int64_t n = 50003;
  const Values grad = random_values(n, 4);
  const State before = some_state(n);
  expect_same_for_any_number_of_threads([&] { return run(before, {grad}, kStep).parameter; });
}

TEST_P(AdamWTest, RefusesOperandsThatDisagree) {
  const Buffer narrow = make_tensor(GetParam(), {4}, Values(4, 0.0));
  const Buffer four = make_wide_tensor(GetParam(), {4}, Values(4, 0.0));
  const Buffer three = make_wide_tensor(GetParam(), {3}, Values(3, 0.0));
  const Buffer two_squares = make_tensor(GetParam().device, DType::kFloat64, {2}, Values(2, 0.0));
  const Buffer integer = make_int_tensor(GetParam(), {1});
  const TensorView p = narrow.view(), a = four.view(), b = three.view();
  const TensorView master = has_master() ? a : TensorView{};
  const auto update = [&](const TensorView& parameter, const TensorView& exp_avg,
                          const TensorView& exp_avg_sq, const TensorView& grad,
                          const AdamWStep& step) {
    adamw_update(parameter, master, exp_avg, exp_avg_sq, grad, {}, step, stream_);
  };
  expect_error("parameter has shape [2, 2], wanted [n]", [&] {
    update(p.reshaped({2, 2}), a, a, a, kStep);
  });
  expect_error("exp_avg has shape [3], wanted [4]", [&] { update(p, b, a, a, kStep); });
  expect_error("exp_avg_sq has shape [3], wanted [4]", [&] { update(p, a, b, a, kStep); });
  expect_error("grad has shape [3], wanted [4]", [&] { update(p, a, a, b, kStep); });
  const std::string dtype = to_string(GetParam().dtype);
  if (has_master()) {
    expect_error("a " + dtype + " parameter needs a master copy",
                 [&] { adamw_update(p, {}, a, a, a, {}, kStep, stream_); });
    expect_error("master has shape [3], wanted [4]",
                 [&] { adamw_update(p, b, a, a, a, {}, kStep, stream_); });
    expect_error("master is " + dtype, [&] { adamw_update(p, p, a, a, a, {}, kStep, stream_); });
    expect_error("grad is " + dtype, [&] { update(p, a, a, p, kStep); });
  } else {
    expect_error("a " + dtype + " parameter has no master copy",
                 [&] { adamw_update(p, a, a, a, a, {}, kStep, stream_); });
  }
  expect_error("grad_squares has shape [2], wanted [1]",
               [&] { adamw_update(p, master, a, a, a, two_squares.view(), kStep, stream_); });
  expect_error("grad_squares is int32, wanted float64",
               [&] { adamw_update(p, master, a, a, a, integer.view(), kStep, stream_); });
  AdamWStep bad = kStep;
  bad.step = 0;
  expect_error("counts its steps from 1, not 0", [&] { update(p, a, a, a, bad); });
  for (double beta : {-0.1, 1.0}) {
    bad = kStep;
    bad.beta1 = beta;
    expect_error("wants beta1 and beta2 in [0, 1)", [&] { update(p, a, a, a, bad); });
    bad = kStep;
    bad.beta2 = beta;
    expect_error("wants beta1 and beta2 in [0, 1)", [&] { update(p, a, a, a, bad); });
  }
}

MIRABELLE_INSTANTIATE_BACKENDS(AdamWTest);

}  // namespace
}  // namespace mirabelle::testing
