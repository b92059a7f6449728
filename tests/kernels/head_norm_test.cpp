#include "mirabelle/kernels/head_norm.h"

#include "mirabelle/kernels/rms_norm.h"
#include "support/backends.h"
#include "support/errors.h"
#include "support/threads.h"

namespace mirabelle::testing {
namespace {

using Values = std::vector<double>;

constexpr double kEpsilon = 0.01;  // large enough to matter

struct Sizes {
  int64_t num_tokens, num_kv_heads, group_size, head_dim;
  Shape shape() const { return {num_tokens, num_kv_heads, group_size + 2, head_dim}; }
};
const std::vector<Sizes> kSizes = {{1, 1, 1, 2},  {0, 1, 2, 4},    {3, 2, 1, 6},   {5, 1, 3, 32},
                                   {7, 2, 2, 40}, {130, 1, 2, 64}, {9, 1, 4, 128}, {2, 1, 1, 256}};

/// Head by head; the last of a group is the value.
Values oracle(const Values& x, const Values& weights, const Sizes& s) {
  Values out = x;
  for (int64_t head = 0; head * s.head_dim < static_cast<int64_t>(x.size()); ++head) {
    const int64_t in_group = head % (s.group_size + 2);
    if (in_group == s.group_size + 1) continue;
    double* y = &out[head * s.head_dim];
    double squares = 0;
    for (int64_t i = 0; i < s.head_dim; ++i) squares += y[i] * y[i];
    const double norm = std::sqrt(squares / static_cast<double>(s.head_dim) + kEpsilon);
    const double* w = &weights[in_group == s.group_size ? s.head_dim : 0];
    for (int64_t i = 0; i < s.head_dim; ++i) y[i] *= w[i] / norm;
  }
  return out;
}

class HeadNormTest : public BackendTest {
 protected:
  Values forward(const Values& x, const Values& weights, const Sizes& s, bool in_place) {
    const Buffer from = make_tensor(GetParam(), s.shape(), x);
    const Buffer separate = empty_tensor(GetParam(), s.shape());
    const TensorView& out = in_place ? from.view() : separate.view();
    head_norm_forward(out, from.view(), make_tensor(GetParam(), {2, s.head_dim}, weights).view(),
                      kEpsilon, stream_);
    return to_doubles(out);
  }

  struct Gradients {
    Values x, weights;
    bool operator==(const Gradients&) const = default;
  };
  Gradients backward(const Values& grad_out, const Values& x, const Values& weights, const Sizes& s,
                     bool in_place = false) {
    const Buffer grad = make_tensor(GetParam(), s.shape(), grad_out);
    const Buffer separate = empty_tensor(GetParam(), s.shape());
    const Shape weight_shape = {2, s.head_dim};
    const Buffer grad_weights =
        make_wide_tensor(GetParam(), weight_shape, Values(2 * s.head_dim, 2.0));  // added to
    const Buffer workspace =
        empty_wide_tensor(GetParam(), {num_token_chunks(s.num_tokens), 2, s.head_dim});
    const TensorView& grad_x = in_place ? grad.view() : separate.view();
    head_norm_backward(
        grad_x, grad_weights.view(), grad.view(), make_tensor(GetParam(), s.shape(), x).view(),
        make_tensor(GetParam(), weight_shape, weights).view(), kEpsilon, workspace.view(), stream_);
    return {to_doubles(grad_x), to_doubles(grad_weights.view())};
  }
};
MIRABELLE_INSTANTIATE_BACKENDS(HeadNormTest);

TEST_P(HeadNormTest, ForwardFollowsTheFormula) {
  for (const Sizes& s : kSizes) {
    const Values x = random_values(s.shape().num_elements(), 1);
    const Values weights = random_values(2 * s.head_dim, 2);
    expect_near(forward(x, weights, s, false), oracle(x, weights, s), 4 * GetParam().tolerance,
                "out");
    EXPECT_EQ(forward(x, weights, s, true), forward(x, weights, s, false));
  }
}

TEST_P(HeadNormTest, BackwardMatchesFiniteDifferences) {
  for (const Sizes& s : {Sizes{1, 1, 1, 2}, {3, 2, 1, 6}, {5, 1, 3, 34}}) {
    const Values x = random_values(s.shape().num_elements(), 1);
    const Values weights = random_values(2 * s.head_dim, 2);
    const Values grad_out = random_values(x.size(), 3);
    const Values of_x = finite_differences(
        [&](const Values& at) { return dot(oracle(at, weights, s), grad_out); }, x);
    Values of_weights = finite_differences(
        [&](const Values& at) { return dot(oracle(x, at, s), grad_out); }, weights);
    for (double& value : of_weights) value += 2;
    const Gradients gradients = backward(grad_out, x, weights, s);
    expect_near(gradients.x, of_x, 8 * GetParam().tolerance + 1e-7, "grad_x");
    expect_near(gradients.weights, of_weights, 1e-4, "grad_weights");
    EXPECT_EQ(backward(grad_out, x, weights, s, true), gradients);
  }
}

TEST_P(HeadNormTest, TheWeightsGradientSumsManyTokens) {
  const Sizes s{1003, 2, 3, 16};
  const Values ones(s.shape().num_elements(), 1.0), weights(32, 1.0);
  const double normed = 1 / std::sqrt(1 + kEpsilon);
  Values expected(16, 2 + 1003 * 2 * 3 * normed);
  expected.resize(32, 2 + 1003 * 2 * normed);
  expect_near(backward(ones, ones, weights, s).weights, expected, 1e-2, "grad_weights");
}

TEST_P(HeadNormTest, TakesNoTokens) {
  EXPECT_EQ(backward({}, {}, {1, 2, 3, 4}, {0, 1, 1, 2}).weights, Values(4, 2.0));
}

TEST_P(HeadNormTest, DoesNotDependOnTheNumberOfThreads) {
  if (GetParam().device != Device::kCpu) GTEST_SKIP() << "CPU only";
  const Sizes s{301, 2, 2, 32};
  const Values x = random_values(s.shape().num_elements(), 1), weights = random_values(64, 2);
  expect_same_for_any_number_of_threads([&] { return forward(x, weights, s, false); });
  expect_same_for_any_number_of_threads([&] { return backward(x, x, weights, s).weights; });
}

TEST_P(HeadNormTest, RefusesOperandsThatDisagree) {
  const Buffer heads = empty_tensor(GetParam(), {2, 1, 3, 4}),
               rows = empty_tensor(GetParam(), {2, 4});
  const Buffer grad = empty_wide_tensor(GetParam(), {2, 4});
  const Buffer sums = empty_wide_tensor(GetParam(), {1, 2, 4});
  const TensorView x = heads.view(), w = rows.view();
  expect_error("x has shape [6, 4], wanted", [&] {
    head_norm_forward(x, x.reshaped({6, 4}), w, 1e-6, stream_);
  });
  expect_error("weights has shape [4, 2], wanted [2, 4]", [&] {
    head_norm_forward(x, x, w.reshaped({4, 2}), 1e-6, stream_);
  });
  expect_error("out has shape [6, 4], wanted [2, 1, 3, 4]", [&] {
    head_norm_forward(x.reshaped({6, 4}), x, w, 1e-6, stream_);
  });
  const auto expect_refused = [&](const char* message, const TensorView& grad_x,
                                  const TensorView& grad_w, const TensorView& grad_out,
                                  const TensorView& workspace) {
    expect_error(message, [&] {
      head_norm_backward(grad_x, grad_w, grad_out, x, w, 1e-6, workspace, stream_);
    });
  };
  expect_refused("grad_x has shape [24], wanted", x.reshaped({24}), grad.view(), x, sums.view());
  expect_refused("grad_weights has shape [8], wanted", x, grad.view().reshaped({8}), x,
                 sums.view());
  expect_refused("grad_out has shape [24], wanted", x, grad.view(), x.reshaped({24}), sums.view());
  expect_refused("workspace has shape [2, 4], wanted", x, grad.view(), x, grad.view());
}

}  // namespace
}  // namespace mirabelle::testing
