#include "mirabelle/kernels/contrastive.h"

#include <limits>

#include "mirabelle/kernels/cross_entropy.h"
#include "support/backends.h"
#include "support/errors.h"
#include "support/threads.h"

namespace mirabelle::testing {
namespace {

using Values = std::vector<double>;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

class ContrastiveTest : public BackendTest {
 protected:
  Values run(const Values& logits, const std::vector<int32_t>& partners, int64_t first_row,
             double temperature) {
    const int64_t columns = static_cast<int64_t>(partners.size());
    const int64_t rows = columns == 0 ? 0 : static_cast<int64_t>(logits.size()) / columns;
    const Buffer x = make_tensor(GetParam(), {rows, columns}, logits);
    contrastive_logits(x.view(), make_int_tensor(GetParam(), partners).view(), first_row,
                       temperature, stream_);
    return to_doubles(x.view());
  }
};
MIRABELLE_INSTANTIATE_WIDE_BACKENDS(ContrastiveTest);

TEST_P(ContrastiveTest, DividesByTheTemperatureAndTakesColumnsAway) {
  const Values logits = {1, 2, 3, 4, 5, 6, 7, 8};
  EXPECT_EQ(run(logits, {2, -1, 0, -7}, 1, 0.5),
            (Values{2, -kInfinity, 6, -kInfinity, 10, -kInfinity, -kInfinity, -kInfinity}));
}

TEST_P(ContrastiveTest, TakesAnySize) {
  for (const auto& [rows, first, columns] :
       {std::array<int64_t, 3>{0, 0, 0}, {1, 0, 1}, {0, 5, 7}, {3, 4, 7}, {100, 200, 301}}) {
    const Values logits = random_values(rows * columns, 1);
    std::vector<int32_t> partners(columns);
    for (int64_t j = 0; j < columns; ++j) partners[j] = static_cast<int32_t>(j % 5 - 1);
    Values expected = logits;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        double& value = expected[i * columns + j];
        value = j == first + i || j % 5 == 0 ? -kInfinity : value / 0.25;
      }
    }
    EXPECT_EQ(run(logits, partners, first, 0.25), expected);
  }
}

// With softmax_cross_entropy: InfoNCE as a double loop over the pairs of a batch.
TEST_P(ContrastiveTest, GivesInfoNceTogetherWithCrossEntropy) {
  const std::vector<int32_t> partners = {3, -1, 5, 0, -1, 2};  // rows 1 and 4 have none
  const int64_t n = 6, size = 4;
  const double temperature = 0.7;
  const Values h = random_values(n * size, 1);
  Values products(n * n), expected(n);
  for (int64_t i = 0; i < n; ++i) {
    double sum = 0;
    for (int64_t j = 0; j < n; ++j) {
      double& product = products[i * n + j];
      for (int64_t c = 0; c < size; ++c) product += h[i * size + c] * h[j * size + c];
      if (j != i && partners[j] >= 0) sum += std::exp(product / temperature);
    }
    if (partners[i] < 0) continue;
    expected[i] = std::log(sum) - products[i * n + partners[i]] / temperature;
  }
  const Buffer logits = make_tensor(GetParam(), {n, n}, products);
  const Buffer targets = make_int_tensor(GetParam(), partners);
  const Buffer loss = empty_tensor(GetParam(), {n});
  const Buffer scale = make_tensor(GetParam().device, DType::kFloat64, {1}, {1});
  contrastive_logits(logits.view(), targets.view(), 0, temperature, stream_);
  softmax_cross_entropy(loss.view(), logits.view(), targets.view(), scale.view(), {}, stream_);
  expect_near(to_doubles(loss.view()), expected, 10 * GetParam().tolerance, "loss");
  const Values grad = to_doubles(logits.view());
  for (int64_t i = 0; i < n; ++i) {
    EXPECT_EQ(grad[i * n + i], 0) << i;
    EXPECT_EQ(grad[i * n + 1], 0) << i;
    EXPECT_EQ(grad[n + i], 0) << i;
  }
}

TEST_P(ContrastiveTest, DoesNotDependOnTheNumberOfThreads) {
  if (GetParam().device != Device::kCpu) GTEST_SKIP() << "CPU only";
  const Values logits = random_values(130 * 200, 1);
  expect_same_for_any_number_of_threads(
      [&] { return run(logits, std::vector<int32_t>(200, 0), 7, 0.1); });
}

TEST_P(ContrastiveTest, RefusesOperandsThatDisagree) {
  const Buffer matrix = empty_tensor(GetParam(), {3, 4});
  const Buffer four = make_int_tensor(GetParam(), {1, 0, 3, 2});
  const TensorView x = matrix.view(), partners = four.view();
  expect_error("logits have shape [12], wanted",
               [&] { contrastive_logits(x.reshaped({12}), partners, 0, 1, stream_); });
  expect_error("partners has shape [3], wanted [4]",
               [&] { contrastive_logits(x, partners.rows(0, 3), 0, 1, stream_); });
  expect_error("rows [2, 5) of a batch of 4",
               [&] { contrastive_logits(x, partners, 2, 1, stream_); });
  expect_error("the temperature must be positive, not 0",
               [&] { contrastive_logits(x, partners, 0, 0, stream_); });
}

}  // namespace
}  // namespace mirabelle::testing
