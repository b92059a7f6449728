#include "mirabelle/kernels/adamw.h"

#include "support/backends.h"
#include "support/errors.h"
#include "support/threads.h"

namespace mirabelle::testing {
namespace {

using Values = std::vector<double>;

struct State {
  Values parameter, exp_avg, exp_avg_sq;
};

State some_state(int64_t n) {
  State state{random_values(n, 1), random_values(n, 2, 0.1), random_values(n, 3, 0.1)};
  for (double& v : state.exp_avg_sq) v *= v;
  return state;
}

/// Algorithm 2 of Loshchilov & Hutter 2019, with the schedule's multiplier inside learning_rate.
void oracle(State& state, const Values& grad, const AdamWStep& step) {
  for (size_t i = 0; i < grad.size(); ++i) {
    const double g = grad[i] * step.grad_scale;
    double &m = state.exp_avg[i], &v = state.exp_avg_sq[i], &p = state.parameter[i];
    m = step.beta1 * m + (1 - step.beta1) * g;
    v = step.beta2 * v + (1 - step.beta2) * g * g;
    const double m_hat = m / (1 - std::pow(step.beta1, step.step));
    const double v_hat = v / (1 - std::pow(step.beta2, step.step));
    p -= step.learning_rate * (m_hat / (std::sqrt(v_hat) + step.epsilon) + step.weight_decay * p);
  }
}

class AdamWTest : public ::testing::TestWithParam<Backend> {
 protected:
  const Stream stream_{GetParam().device};

  /// The state after one update per gradient, step numbers from step.step on.
  State run(const State& before, const std::vector<Values>& grads, AdamWStep step) {
    const int64_t n = static_cast<int64_t>(before.parameter.size());
    const Buffer parameter = make_tensor(GetParam(), {n}, before.parameter);
    const Buffer exp_avg = make_tensor(GetParam(), {n}, before.exp_avg);
    const Buffer exp_avg_sq = make_tensor(GetParam(), {n}, before.exp_avg_sq);
    for (const Values& grad : grads) {
      adamw_update(parameter.view(), exp_avg.view(), exp_avg_sq.view(),
                   make_tensor(GetParam(), {n}, grad).view(), step, stream_);
      ++step.step;
    }
    return {to_doubles(parameter.view()), to_doubles(exp_avg.view()),
            to_doubles(exp_avg_sq.view())};
  }

  void expect_state(const State& actual, const State& expected) {
    expect_near(actual.parameter, expected.parameter, GetParam().tolerance, "parameter");
    expect_near(actual.exp_avg, expected.exp_avg, GetParam().tolerance, "exp_avg");
    expect_near(actual.exp_avg_sq, expected.exp_avg_sq, GetParam().tolerance, "exp_avg_sq");
  }
};

const AdamWStep kStep{.learning_rate = 0.01,
                      .beta1 = 0.9,
                      .beta2 = 0.98,
                      .epsilon = 1e-8,
                      .weight_decay = 0.1,
                      .grad_scale = 0.5,
                      .step = 3};

TEST_P(AdamWTest, OneStepFollowsTheFormula) {
  for (int64_t n : {0, 1, 7, 17, 1000, 40001}) {
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

TEST_P(AdamWTest, FirstStepMovesByTheLearningRateWhateverTheGradientsSize) {
  const State zero{Values(3, 0.0), Values(3, 0.0), Values(3, 0.0)};
  const AdamWStep first{.learning_rate = 0.25};
  expect_near(run(zero, {{1000, -1, 1e-3}}, first).parameter, {-0.25, 0.25, -0.25}, 1e-4,
              "parameter");
}

TEST_P(AdamWTest, WithoutGradientOnlyDecays) {
  const State before{{2, -4}, {0, 0}, {0, 0}};
  expect_near(run(before, {{0, 0}}, kStep).parameter, {2 - 0.002, -4 + 0.004}, GetParam().tolerance,
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

TEST_P(AdamWTest, DoesNotDependOnTheNumberOfThreads) {
  const int64_t n = 50003;
  const Values grad = random_values(n, 4);
  const State before = some_state(n);
  expect_same_for_any_number_of_threads([&] { return run(before, {grad}, kStep).parameter; });
}

TEST_P(AdamWTest, RefusesOperandsThatDisagree) {
  const Buffer x = make_tensor(GetParam(), {4}, Values(4, 0.0));
  const Buffer y = make_tensor(GetParam(), {3}, Values(3, 0.0));
  const TensorView a = x.view(), b = y.view();
  expect_error("parameter has shape [2, 2], wanted [n]", [&] {
    adamw_update(a.reshaped({2, 2}), a, a, a, kStep, stream_);
  });
  expect_error("exp_avg has shape [3], wanted [4]",
               [&] { adamw_update(a, b, a, a, kStep, stream_); });
  expect_error("exp_avg_sq has shape [3], wanted [4]",
               [&] { adamw_update(a, a, b, a, kStep, stream_); });
  expect_error("grad has shape [3], wanted [4]", [&] { adamw_update(a, a, a, b, kStep, stream_); });
  AdamWStep bad = kStep;
  bad.step = 0;
  expect_error("counts its steps from 1, not 0", [&] { adamw_update(a, a, a, a, bad, stream_); });
  for (double beta : {-0.1, 1.0}) {
    bad = kStep;
    bad.beta1 = beta;
    expect_error("wants beta1 and beta2 in [0, 1)",
                 [&] { adamw_update(a, a, a, a, bad, stream_); });
    bad = kStep;
    bad.beta2 = beta;
    expect_error("wants beta1 and beta2 in [0, 1)",
                 [&] { adamw_update(a, a, a, a, bad, stream_); });
  }
}

MIRABELLE_INSTANTIATE_BACKENDS(AdamWTest);

}  // namespace
}  // namespace mirabelle::testing
