#include "mirabelle/kernels/squared_error.h"

#include "support/backends.h"
#include "support/errors.h"
#include "support/threads.h"

namespace mirabelle::testing {
namespace {

using Values = std::vector<double>;

Values oracle(const Values& x, const Values& target, int64_t rows) {
  Values loss(rows);
  const int64_t columns = rows == 0 ? 0 : static_cast<int64_t>(x.size()) / rows;
  for (int64_t i = 0; i < rows * columns; ++i) {
    loss[i / columns] += (x[i] - target[i]) * (x[i] - target[i]);
  }
  return loss;
}

class SquaredErrorTest : public BackendTest {
 protected:
  struct Result {
    Values loss, grad;
  };
  Result run(const Values& x, const Values& target, int64_t rows, int64_t columns, double scale) {
    const Buffer loss = make_tensor(GetParam(), {rows}, Values(rows, 5.0));  // overwritten
    const Buffer prediction = make_tensor(GetParam(), {rows, columns}, x);
    squared_error(loss.view(), prediction.view(),
                  make_tensor(GetParam(), {rows, columns}, target).view(), scale, stream_);
    return {to_doubles(loss.view()), to_doubles(prediction.view())};
  }
};
MIRABELLE_INSTANTIATE_WIDE_BACKENDS(SquaredErrorTest);

TEST_P(SquaredErrorTest, FollowsTheFormulaAndItsFiniteDifferences) {
  for (const auto& [rows, columns] :
       {std::array<int64_t, 2>{1, 1}, {3, 7}, {0, 5}, {2, 0}, {9, 33}, {2, 100}}) {
    const Values x = random_values(rows * columns, 1), target = random_values(rows * columns, 2);
    const Result result = run(x, target, rows, columns, 0.75);
    expect_near(result.loss, oracle(x, target, rows), 8 * GetParam().tolerance, "loss");
    const Values grad = finite_differences(
        [&](const Values& at) { return 0.75 * dot(oracle(at, target, rows), Values(rows, 1.0)); },
        x);
    expect_near(result.grad, grad, 4 * GetParam().tolerance + 1e-8, "grad");
  }
}

TEST_P(SquaredErrorTest, SumsLongRows) {
  const int64_t rows = 40, columns = 1537;
  const Values x = random_values(rows * columns, 1), target = random_values(rows * columns, 2);
  const Result result = run(x, target, rows, columns, 1);
  expect_near(result.loss, oracle(x, target, rows), 5 * GetParam().tolerance, "loss");
  for (size_t i = 0; i < x.size(); ++i) {
    ASSERT_NEAR(result.grad[i], 2 * (x[i] - target[i]), 20 * GetParam().tolerance) << i;
  }
}

TEST_P(SquaredErrorTest, DoesNotDependOnTheNumberOfThreads) {
  if (GetParam().device != Device::kCpu) GTEST_SKIP() << "CPU only";
  const Values x = random_values(301 * 77, 1), target = random_values(301 * 77, 2);
  expect_same_for_any_number_of_threads([&] { return run(x, target, 301, 77, 1).loss; });
}

TEST_P(SquaredErrorTest, RefusesOperandsThatDisagree) {
  const Buffer matrix = empty_tensor(GetParam(), {3, 4}), other = empty_tensor(GetParam(), {3, 4});
  const Buffer losses = empty_tensor(GetParam(), {3});
  const TensorView x = matrix.view(), target = other.view(), loss = losses.view();
  expect_error("x has shape [12], wanted",
               [&] { squared_error(loss, x.reshaped({12}), target, 1, stream_); });
  expect_error("target has shape [4, 3], wanted [3, 4]", [&] {
    squared_error(loss, x, target.reshaped({4, 3}), 1, stream_);
  });
  expect_error("loss has shape [2], wanted [3]",
               [&] { squared_error(loss.rows(0, 2), x, target, 1, stream_); });
}

}  // namespace
}  // namespace mirabelle::testing
