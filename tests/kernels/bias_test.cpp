#include "mirabelle/kernels/bias.h"

#include "mirabelle/kernels/rms_norm.h"
#include "support/backends.h"
#include "support/errors.h"
#include "support/threads.h"

namespace mirabelle::testing {
namespace {

using Values = std::vector<double>;

class BiasTest : public BackendTest {
 protected:
  Values add(const Values& x, const Values& bias, int64_t rows) {
    const int64_t columns = static_cast<int64_t>(bias.size());
    const Buffer sum = make_tensor(GetParam(), {rows, columns}, x);
    add_bias(sum.view(), make_tensor(GetParam(), {columns}, bias).view(), stream_);
    return to_doubles(sum.view());
  }
  Values backward(const Values& grad, int64_t rows, int64_t columns) {
    const Buffer from = make_tensor(GetParam(), {rows, columns}, grad);
    const Buffer grad_bias = make_wide_tensor(GetParam(), {columns}, Values(columns, 2.0));
    const Buffer workspace = empty_wide_tensor(GetParam(), {num_token_chunks(rows), columns});
    bias_backward(grad_bias.view(), from.view(), workspace.view(), stream_);
    return to_doubles(grad_bias.view());
  }
};
MIRABELLE_INSTANTIATE_BACKENDS(BiasTest);

TEST_P(BiasTest, AddsToEveryRowAndSumsTheGradientOverRows) {
  for (const auto& [rows, columns] :
       {std::array<int64_t, 2>{1, 1}, {7, 5}, {3, 129}, {0, 4}, {200, 96}, {1003, 130}}) {
    const Values x = random_values(rows * columns, 1, 4);
    const Values bias = random_values(columns, 2);
    Values sums = x, expected(columns, 2.0);
    for (int64_t i = 0; i < rows * columns; ++i) {
      sums[i] += bias[i % columns];
      expected[i % columns] += x[i];
    }
    expect_near(add(x, bias, rows), sums, 4 * GetParam().tolerance, "x");
    // the sums are of the wide dtype
    expect_near(backward(x, rows, columns), expected, 1e-4, "grad_bias");
  }
}

TEST_P(BiasTest, DoesNotDependOnTheNumberOfThreads) {
  if (GetParam().device != Device::kCpu) GTEST_SKIP() << "CPU only";
  const Values x = random_values(301 * 177, 1);
  expect_same_for_any_number_of_threads([&] { return backward(x, 301, 177); });
}

TEST_P(BiasTest, RefusesOperandsThatDisagree) {
  const Buffer matrix = empty_tensor(GetParam(), {3, 4}), row = empty_tensor(GetParam(), {4});
  const Buffer grad = empty_wide_tensor(GetParam(), {4}),
               sums = empty_wide_tensor(GetParam(), {1, 4});
  const TensorView x = matrix.view();
  expect_error("x has shape [12], wanted",
               [&] { add_bias(x.reshaped({12}), row.view(), stream_); });
  expect_error("bias has shape [3, 4], wanted [4]", [&] { add_bias(x, x, stream_); });
  expect_error("grad has shape [12], wanted",
               [&] { bias_backward(grad.view(), x.reshaped({12}), sums.view(), stream_); });
  expect_error("grad_bias has shape [3], wanted [4]",
               [&] { bias_backward(grad.view().rows(0, 3), x, sums.view(), stream_); });
  expect_error("workspace has shape [4], wanted [1, 4]",
               [&] { bias_backward(grad.view(), x, sums.view().reshaped({4}), stream_); });
}

}  // namespace
}  // namespace mirabelle::testing
