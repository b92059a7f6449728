#include "mirabelle/kernels/bias_silu.h"

#include "support/backends.h"
#include "support/errors.h"
#include "support/threads.h"

namespace mirabelle::testing {
namespace {

using Values = std::vector<double>;

double silu(double x) { return x * 0.5 * (1 + std::tanh(0.5 * x)); }

Values oracle(const Values& x, const Values& bias) {
  Values out;
  for (size_t i = 0; i < x.size(); ++i) out.push_back(silu(x[i] + bias[i % bias.size()]));
  return out;
}

class BiasSiluTest : public BackendTest {
 protected:
  Values forward(const Values& x, const Values& bias, int64_t rows, bool in_place = false) {
    const int64_t columns = static_cast<int64_t>(bias.size());
    const Buffer from = make_tensor(GetParam(), {rows, columns}, x);
    const Buffer separate = empty_tensor(GetParam(), {rows, columns});
    const TensorView& out = in_place ? from.view() : separate.view();
    bias_silu_forward(out, from.view(), make_tensor(GetParam(), {columns}, bias).view(), stream_);
    return to_doubles(out);
  }

  struct Gradients {
    Values x, bias;
    bool operator==(const Gradients&) const = default;
  };
  enum class Place { kSeparate, kX, kGradOut };
  Gradients backward(const Values& grad_out, const Values& x, const Values& bias, int64_t rows,
                     Place place = Place::kSeparate) {
    const int64_t columns = static_cast<int64_t>(bias.size());
    const Shape shape{rows, columns};
    const Buffer from = make_tensor(GetParam(), shape, x);
    const Buffer grad = make_tensor(GetParam(), shape, grad_out);
    const Buffer separate = make_tensor(GetParam(), shape, Values(x.size(), 3.0));  // overwritten
    const Buffer grad_bias = make_tensor(GetParam(), {columns}, Values(columns, 2.0));  // added to
    const TensorView& grad_x = place == Place::kX         ? from.view()
                               : place == Place::kGradOut ? grad.view()
                                                          : separate.view();
    bias_silu_backward(grad_x, grad_bias.view(), grad.view(), from.view(),
                       make_tensor(GetParam(), {columns}, bias).view(), stream_);
    return {to_doubles(grad_x), to_doubles(grad_bias.view())};
  }
};
MIRABELLE_INSTANTIATE_WIDE_BACKENDS(BiasSiluTest);

TEST_P(BiasSiluTest, ForwardFollowsTheFormula) {
  for (const auto& [rows, columns] :
       {std::array<int64_t, 2>{1, 1}, {7, 5}, {3, 129}, {0, 4}, {200, 96}, {33, 512}}) {
    const Values x = random_values(rows * columns, 1, 4), bias = random_values(columns, 2);
    expect_near(forward(x, bias, rows), oracle(x, bias), GetParam().tolerance, "out");
    EXPECT_EQ(forward(x, bias, rows, true), forward(x, bias, rows));
  }
}

TEST_P(BiasSiluTest, ExtremeSumsStayFinite) {
  const Values x = {-1e4, -104.5, -88, 0, 88, 104.5, 1e4}, bias(7, 0.0);
  expect_near(forward(x, bias, 1), oracle(x, bias), GetParam().tolerance, "out");
  expect_near(backward(Values(7, 1.0), x, bias, 1).x, {0, 0, 0, 0.5, 1, 1, 1},
              10 * GetParam().tolerance, "grad_x");
}

TEST_P(BiasSiluTest, BackwardMatchesFiniteDifferences) {
  for (const auto& [rows, columns] : {std::array<int64_t, 2>{1, 1}, {5, 7}, {19, 8}, {3, 70}}) {
    const Values x = random_values(rows * columns, 1, 2), bias = random_values(columns, 2);
    const Values grad_out = random_values(rows * columns, 3);
    const Values of_x =
        finite_differences([&](const Values& at) { return dot(oracle(at, bias), grad_out); }, x);
    Values of_bias =
        finite_differences([&](const Values& at) { return dot(oracle(x, at), grad_out); }, bias);
    for (double& value : of_bias) value += 2;
    const Gradients gradients = backward(grad_out, x, bias, rows);
    expect_near(gradients.x, of_x, 4 * GetParam().tolerance + 1e-8, "grad_x");
    expect_near(gradients.bias, of_bias, 8 * GetParam().tolerance + 1e-8, "grad_bias");
  }
}

TEST_P(BiasSiluTest, TheBiasGradientSumsManyRows) {
  const int64_t rows = 1003, columns = 100;
  const Values grad_out = random_values(rows * columns, 1), zeros(rows * columns, 0.0);
  const Gradients gradients = backward(grad_out, zeros, Values(columns, 0.0), rows);
  Values expected(columns, 2.0);  // silu'(0) = 1/2
  for (int64_t i = 0; i < rows * columns; ++i) expected[i % columns] += grad_out[i] / 2;
  expect_near(gradients.bias, expected, 30 * GetParam().tolerance, "grad_bias");
}

TEST_P(BiasSiluTest, BackwardMayReplaceEitherOfItsInputs) {
  for (const int64_t columns : {1, 7, 64, 133}) {
    const Values x = random_values(40 * columns, 1), grad_out = random_values(40 * columns, 2);
    const Values bias = random_values(columns, 3);
    const Gradients expected = backward(grad_out, x, bias, 40);
    EXPECT_EQ(backward(grad_out, x, bias, 40, Place::kX), expected);
    EXPECT_EQ(backward(grad_out, x, bias, 40, Place::kGradOut), expected);
  }
}

TEST_P(BiasSiluTest, TakesNoRows) {
  EXPECT_EQ(backward({}, {}, {1, 2}, 0).bias, (Values{2, 2}));
  EXPECT_TRUE(forward({}, {}, 3).empty());
}

TEST_P(BiasSiluTest, DoesNotDependOnTheNumberOfThreads) {
  if (GetParam().device != Device::kCpu) GTEST_SKIP() << "CPU only";
  const Values x = random_values(301 * 177, 1), bias = random_values(177, 2);
  expect_same_for_any_number_of_threads([&] { return forward(x, bias, 301); });
  expect_same_for_any_number_of_threads([&] { return backward(x, x, bias, 301).bias; });
}

TEST_P(BiasSiluTest, RefusesOperandsThatDisagree) {
  const Buffer matrix = empty_tensor(GetParam(), {3, 4}), row = empty_tensor(GetParam(), {4});
  const TensorView x = matrix.view(), bias = row.view();
  expect_error("x has shape [12], wanted",
               [&] { bias_silu_forward(x, x.reshaped({12}), bias, stream_); });
  expect_error("bias has shape [3, 4], wanted [4]", [&] { bias_silu_forward(x, x, x, stream_); });
  expect_error("out has shape [4, 3], wanted [3, 4]", [&] {
    bias_silu_forward(x.reshaped({4, 3}), x, bias, stream_);
  });
  expect_error("grad_x has shape [4, 3], wanted [3, 4]", [&] {
    bias_silu_backward(x.reshaped({4, 3}), bias, x, x, bias, stream_);
  });
  expect_error("grad_bias has shape [3], wanted [4]",
               [&] { bias_silu_backward(x, bias.rows(0, 3), x, x, bias, stream_); });
  expect_error("grad_out has shape [4, 3], wanted [3, 4]", [&] {
    bias_silu_backward(x, bias, x.reshaped({4, 3}), x, bias, stream_);
  });
}

}  // namespace
}  // namespace mirabelle::testing
