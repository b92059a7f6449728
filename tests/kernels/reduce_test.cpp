#include "mirabelle/kernels/reduce.h"

#include <string>

#include "support/backends.h"
#include "support/errors.h"
#include "support/threads.h"

namespace mirabelle::testing {
namespace {

using Values = std::vector<double>;

/// Numbers of so many sizes that their sum in float64 depends on the order.
Values numbers_of_all_sizes(int64_t n) {
  Values values = random_values(n, 1);
  for (int64_t i = 0; i < n; ++i) values[i] = std::ldexp(values[i], i % 61 - 30);
  return values;
}

class ReduceTest : public BackendTest {
 protected:
  template <typename Kernel>
  double run(Kernel kernel, const Values& x) {
    const Buffer out({1}, DType::kFloat64, GetParam().device);
    kernel(out.view(), make_tensor(GetParam(), {static_cast<int64_t>(x.size())}, x).view(),
           stream_);
    return to_doubles(out.view())[0];
  }
};

TEST_P(ReduceTest, SumsFollowTheFormulaInFloat64) {
  for (int64_t n : {0, 1, 7, 1000, 4095, 4096, 4097, 70001, 1200007}) {
    const Values x = random_values(n, 1);
    long double total = 0, squares = 0;
    for (double value : x) total += value, squares += static_cast<long double>(value) * value;
    // float64 whatever the dtype: the inputs are exact, so both must be this close
    EXPECT_NEAR(run(add_sum, x), static_cast<double>(total), 1e-9) << n;
    EXPECT_NEAR(run(sum_of_squares, x), static_cast<double>(squares), 1e-14 * n * 100) << n;
  }
}

TEST_P(ReduceTest, ManySmallNumbersAreNotLost) {
  Values x(1 << 20, 1.0 / 1024);
  x[0] = 1 << 24;
  EXPECT_EQ(run(add_sum, x), (1 << 24) + ((1 << 20) - 1) / 1024.0);
}

TEST_P(ReduceTest, AddsToWhatIsThere) {
  const Buffer out = make_tensor(GetParam().device, DType::kFloat64, {1}, {2.5});
  const Buffer x = make_tensor(GetParam(), {2}, {3, -1});
  add_sum(out.view(), x.view(), stream_);
  EXPECT_EQ(to_doubles(out.view())[0], 4.5);
  sum_of_squares(out.view(), x.view(), stream_);
  EXPECT_EQ(to_doubles(out.view())[0], 10);
}

TEST_P(ReduceTest, TakesAnyShape) {
  const Buffer out({1}, DType::kFloat64, GetParam().device);
  add_sum(out.view(), make_tensor(GetParam(), {2, 3}, {1, 2, 3, 4, 5, 6}).view(), stream_);
  EXPECT_EQ(to_doubles(out.view())[0], 21);
}

TEST_P(ReduceTest, RangesMayBeginAnywhere) {  // not only where 16 bytes do
  const Buffer out({1}, DType::kFloat64, GetParam().device);
  const Buffer x = make_tensor(GetParam(), {5, 3}, Values(15, 0.5));
  add_sum(out.view(), x.view().rows(1, 5), stream_);
  EXPECT_EQ(to_doubles(out.view())[0], 6);
}

TEST_P(ReduceTest, GivesTheSameBitsEveryTime) {
  for (int64_t n : {20001, 1200008}) {
    const Values x = numbers_of_all_sizes(n);
    EXPECT_EQ(run(add_sum, x), run(add_sum, x));
    EXPECT_EQ(run(sum_of_squares, x), run(sum_of_squares, x));
  }
}

TEST_P(ReduceTest, DoesNotDependOnTheNumberOfThreads) {
  if (GetParam().device != Device::kCpu) GTEST_SKIP() << "CPU only";
  for (int64_t n : {20001, 1200007}) {
    const Values x = numbers_of_all_sizes(n);
    expect_same_for_any_number_of_threads([&] { return Values{run(add_sum, x)}; });
    expect_same_for_any_number_of_threads([&] { return Values{run(sum_of_squares, x)}; });
  }
}

TEST_P(ReduceTest, FillZeroClearsEveryElementOfAnyDtype) {
  const Buffer x = make_tensor(GetParam(), {3, 5}, random_values(15, 1));
  fill_zero(x.view().rows(1, 3), stream_);
  Values expected = random_values(15, 1);
  std::fill(expected.begin() + 5, expected.end(), 0.0);
  EXPECT_EQ(to_doubles(x.view()), expected);
  const Buffer integers = make_int_tensor(GetParam(), {1, 2});
  fill_zero(integers.view(), stream_);
  EXPECT_EQ(to_host<int32_t>(integers.view()), (std::vector<int32_t>{0, 0}));
  fill_zero(TensorView{nullptr, {0, 4}}, stream_);  // nothing to clear
}

TEST_P(ReduceTest, RefusesOperandsThatDisagree) {
  const Device device = GetParam().device;
  const Buffer x = make_tensor(GetParam(), {4}, Values(4, 0.0));
  const Buffer two({2}, DType::kFloat64, device), single({1}, DType::kFloat32, device);
  const Buffer good({1}, DType::kFloat64, device);
  const auto integers = make_int_tensor(GetParam(), {1, 2});
  expect_error("out is float64 [2], wanted float64 [1]",
               [&] { add_sum(two.view(), x.view(), stream_); });
  expect_error("out is float32 [1], wanted float64 [1]",
               [&] { sum_of_squares(single.view(), x.view(), stream_); });
  expect_error(std::string("no kernel for int32 on ") + to_string(device),
               [&] { add_sum(good.view(), integers.view(), stream_); });
  TensorView elsewhere = x.view();
  elsewhere.device = device == Device::kCpu ? Device::kCuda : Device::kCpu;
  expect_error(
      std::string("out is on ") + to_string(device) + ", wanted " + to_string(elsewhere.device),
      [&] { add_sum(good.view(), elsewhere, stream_); });
#ifndef MIRABELLE_CUDA
  expect_error("no cuda backend", [&] { fill_zero(elsewhere, stream_); });
#endif
}

MIRABELLE_INSTANTIATE_BACKENDS(ReduceTest);

}  // namespace
}  // namespace mirabelle::testing
