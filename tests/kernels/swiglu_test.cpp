#include "mirabelle/kernels/swiglu.h"

#include "support/backends.h"
#include "support/errors.h"
#include "support/threads.h"

namespace mirabelle::testing {
namespace {

using Values = std::vector<double>;

double sigmoid(double x) { return 0.5 * (1 + std::tanh(0.5 * x)); }

Values oracle(const Values& gate_up, int64_t num_rows, int64_t block_size) {
  Values out;
  for (int64_t row = 0; row < num_rows; ++row) {
    for (int64_t i = 0; i < block_size; ++i) {
      const double gate = gate_up[2 * row * block_size + i];
      out.push_back(gate * sigmoid(gate) * gate_up[(2 * row + 1) * block_size + i]);
    }
  }
  return out;
}

class SwigluTest : public BackendTest {
 protected:
  Values forward(const Values& gate_up, int64_t num_tokens, int64_t num_blocks, int64_t size) {
    const Buffer out = empty_tensor(GetParam(), {num_tokens, num_blocks * size});
    swiglu_forward(out.view(),
                   make_tensor(GetParam(), {num_tokens, num_blocks, 2, size}, gate_up).view(),
                   stream_);
    return to_doubles(out.view());
  }

  Values backward(const Values& gate_up, const Values& grad_out, int64_t num_tokens,
                  int64_t num_blocks, int64_t size, bool in_place) {
    const Buffer x = make_tensor(GetParam(), {num_tokens, num_blocks, 2, size}, gate_up);
    const Buffer separate =
        make_tensor(GetParam(), x.view().shape, Values(gate_up.size(), 3.0));  // overwritten
    const TensorView& grad = in_place ? x.view() : separate.view();
    swiglu_backward(grad, make_tensor(GetParam(), {num_tokens, num_blocks * size}, grad_out).view(),
                    x.view(), stream_);
    return to_doubles(grad);
  }
};

TEST_P(SwigluTest, ForwardFollowsTheFormula) {
  for (const auto& [tokens, blocks, size] :
       {std::array<int64_t, 3>{1, 1, 1}, {7, 2, 5}, {3, 1, 129}, {200, 4, 96}}) {
    const Values gate_up = random_values(tokens * blocks * 2 * size, 1, 4);
    expect_near(forward(gate_up, tokens, blocks, size), oracle(gate_up, tokens * blocks, size),
                GetParam().tolerance, "out");
  }
}

TEST_P(SwigluTest, ExtremeGatesStayFinite) {
  const Values gates = {-1e4, -1000, -104.5, -88, -20, -1e-20, 0, 1e-20, 20, 88, 104.5, 1000, 1e4};
  Values gate_up = gates;
  gate_up.resize(2 * gates.size(), 1.0);
  const int64_t n = static_cast<int64_t>(gates.size());
  expect_near(forward(gate_up, 1, 1, n), oracle(gate_up, 1, n), GetParam().tolerance, "out");
  const Values grad = backward(gate_up, Values(n, 1.0), 1, 1, n, false);
  for (int64_t i = 0; i < n; ++i) {
    const double s = sigmoid(gates[i]);
    EXPECT_NEAR(grad[i], s + gates[i] * s * (1 - s), 10 * GetParam().tolerance) << gates[i];
  }
}

TEST_P(SwigluTest, BackwardMatchesFiniteDifferences) {
  for (int64_t size : {7, 8}) {
    const Values gate_up = random_values(3 * 2 * 2 * size, 1, 2);
    const Values grad_out = random_values(3 * 2 * size, 2);
    const Values expected = finite_differences(
        [&](const Values& x) { return dot(oracle(x, 6, size), grad_out); }, gate_up);
    expect_near(backward(gate_up, grad_out, 3, 2, size, false), expected,
                4 * GetParam().tolerance + 1e-8, "grad_gate_up");
  }
}

TEST_P(SwigluTest, BackwardMayReplaceItsInput) {
  for (int64_t size : {1, 7, 128, 133}) {
    const Values gate_up = random_values(40 * 2 * 2 * size, 1), grad = random_values(80 * size, 2);
    EXPECT_EQ(backward(gate_up, grad, 40, 2, size, true),
              backward(gate_up, grad, 40, 2, size, false));
  }
}

TEST_P(SwigluTest, TakesNoTokens) {
  EXPECT_TRUE(forward({}, 0, 2, 3).empty());
  EXPECT_TRUE(backward({}, {}, 0, 2, 3, false).empty());
}

TEST_P(SwigluTest, DoesNotDependOnTheNumberOfThreads) {
  if (GetParam().device != Device::kCpu) GTEST_SKIP() << "CPU only";
  const Values gate_up = random_values(301 * 2 * 77, 1), grad_out = random_values(301 * 77, 2);
  expect_same_for_any_number_of_threads([&] { return forward(gate_up, 301, 1, 77); });
  expect_same_for_any_number_of_threads(
      [&] { return backward(gate_up, grad_out, 301, 1, 77, false); });
}

TEST_P(SwigluTest, RefusesOperandsThatDisagree) {
  const Buffer gate_up = make_tensor(GetParam(), {3, 2, 2, 4}, Values(48, 0.0));
  const Buffer out = make_tensor(GetParam(), {3, 8}, Values(24, 0.0));
  const TensorView x = gate_up.view(), y = out.view();
  expect_error("gate_up has shape [3, 4, 4], wanted", [&] {
    swiglu_forward(y, x.reshaped({3, 4, 4}), stream_);
  });
  expect_error("gate_up has shape [3, 2, 4, 2], wanted", [&] {
    swiglu_forward(y, x.reshaped({3, 2, 4, 2}), stream_);
  });
  expect_error("out has shape [4, 6], wanted [3, 8]", [&] {
    swiglu_forward(y.reshaped({4, 6}), x, stream_);
  });
  expect_error("grad_out has shape [4, 6], wanted [3, 8]", [&] {
    swiglu_backward(x, y.reshaped({4, 6}), x, stream_);
  });
  expect_error("grad_gate_up has shape [3, 8], wanted", [&] { swiglu_backward(y, y, x, stream_); });
}

MIRABELLE_INSTANTIATE_BACKENDS(SwigluTest);

}  // namespace
}  // namespace mirabelle::testing
