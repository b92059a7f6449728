#include "mirabelle/kernels/reduce.h"

#include <limits>
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

const double kInfinity = std::numeric_limits<double>::infinity();

/// Integers of more than 64 bits.
__extension__ typedef __int128 Int128;

/// The sum of floor(x^2 * 2^50 / scale^2); of long doubles, whose 64 bits hold the squares.
Int128 oracle_squares(const Values& x) {
  long double largest = 0, scale = 0x1p-200L;
  for (double value : x) largest = std::max<long double>(largest, std::abs(value));
  while (scale <= largest) scale *= 2;
  Int128 sum = 0;
  for (double value : x) {
    const long double ratio = value / scale;
    sum += static_cast<int64_t>(std::floor(ratio * ratio * 0x1p50L));
  }
  return sum;
}

/// The tree of tree_sum over rows [first, first + count) of x, of n columns, in W.
template <typename W>
std::vector<W> oracle_tree(const Values& x, int64_t n, int64_t first, int64_t count) {
  if (count == 1) return {x.begin() + first * n, x.begin() + (first + 1) * n};
  int64_t left = 1;
  while (2 * left < count) left *= 2;
  std::vector<W> sum = oracle_tree<W>(x, n, first, left);
  const std::vector<W> right = oracle_tree<W>(x, n, first + left, count - left);
  for (int64_t i = 0; i < n; ++i) sum[i] += right[i];
  return sum;
}

class ReduceTest : public BackendTest {
 protected:
  Buffer make_double(double value) {
    return make_tensor(GetParam().device, DType::kFloat64, {1}, {value});
  }
  Buffer make_int64_tensor(const std::vector<int64_t>& values) {
    Buffer buffer({static_cast<int64_t>(values.size())}, DType::kInt64, GetParam().device);
    copy(buffer.view(), view_of(values), stream_);
    synchronize(GetParam().device);
    return buffer;
  }
  double run_max(const Values& x, double before) {
    const Buffer out = make_double(before);
    max_magnitude(out.view(), make_tensor(GetParam(), {static_cast<int64_t>(x.size())}, x).view(),
                  stream_);
    return to_doubles(out.view())[0];
  }
  double value_of(int64_t high, int64_t low, double largest) {
    const Buffer out = make_double(99), sums = make_int64_tensor({high, low});
    fixed_point_value(out.view(), sums.view(), make_double(largest).view(), stream_);
    return to_doubles(out.view())[0];
  }
  struct SquareSum {
    Int128 total;
    double value;
  };
  SquareSum run_squares(const std::vector<Values>& parts) {
    const Buffer largest = make_double(0), sums = make_int64_tensor({0, 0});
    std::vector<Buffer> tensors;
    for (const Values& part : parts) {
      tensors.push_back(make_tensor(GetParam(), {static_cast<int64_t>(part.size())}, part));
      max_magnitude(largest.view(), tensors.back().view(), stream_);
    }
    for (const Buffer& part : tensors) {
      add_fixed_point_squares(sums.view(), part.view(), largest.view(), stream_);
    }
    const std::vector<int64_t> limbs = to_host<int64_t>(sums.view());
    const double value = value_of(limbs[0], limbs[1], to_doubles(largest.view())[0]);
    return {(Int128{limbs[0]} << 32) + limbs[1], value};
  }
  /// As the wide dtype sums and the dtype `rounded_to` stores.
  Values oracle_tree_sum(const Values& x, int64_t count, DType rounded_to) {
    const int64_t n = static_cast<int64_t>(x.size()) / count;
    const auto as_values = [](const auto& sum) { return Values(sum.begin(), sum.end()); };
    const Values sum = wide(rounded_to) == DType::kFloat64
                           ? oracle_tree<double>(x, n, 0, count)
                           : as_values(oracle_tree<float>(x, n, 0, count));
    return to_doubles(make_tensor(Device::kCpu, rounded_to, {n}, sum).view());
  }
  Values run_tree_sum(const Values& x, int64_t count, DType x_dtype) {
    const int64_t n = static_cast<int64_t>(x.size()) / count;
    const Buffer out = empty_tensor(GetParam(), {n});
    tree_sum(out.view(), make_tensor(GetParam().device, x_dtype, {count, n}, x).view(), stream_);
    return to_doubles(out.view());
  }
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

TEST_P(ReduceTest, ScalesOrAddsTheMultiple) {
  for (int64_t n : {0, 1, 7, 8, 1000, 20001}) {
    const Values x = random_values(n, 1), before = random_values(n, 2);
    Values scaled, added;
    for (int64_t i = 0; i < n; ++i) {
      scaled.push_back(-0.75 * x[i]);
      added.push_back(before[i] - 0.75 * x[i]);
    }
    const Buffer from = make_tensor(GetParam(), {n}, x);
    const Buffer out = make_tensor(GetParam(), {n}, before);
    scale_by(out.view(), from.view(), -0.75, Accumulate::kYes, stream_);
    expect_near(to_doubles(out.view()), added, GetParam().tolerance, "sum");
    scale_by(out.view(), from.view(), -0.75, Accumulate::kNo, stream_);
    expect_near(to_doubles(out.view()), scaled, GetParam().tolerance, "multiple");
    scale_by(from.view(), from.view(), -0.75, Accumulate::kNo, stream_);
    EXPECT_EQ(to_doubles(from.view()), to_doubles(out.view()));
  }
  const Buffer x = empty_tensor(GetParam(), {3});
  expect_error("x has shape [2], wanted [3]",
               [&] { scale_by(x.view(), x.view().rows(0, 2), 1, Accumulate::kNo, stream_); });
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

TEST_P(ReduceTest, MaxMagnitudeFindsTheLargestAnywhere) {
  EXPECT_EQ(run_max({}, 0), 0);
  EXPECT_EQ(run_max({}, 2), 2);
  EXPECT_EQ(run_max({-0.0}, 0), 0);
  for (int64_t n : {1, 7, 8, 1000, 70001}) {
    Values x = random_values(n, 1);
    for (int64_t place : {int64_t{0}, n / 2, n - 1}) {
      const double before = x[place];
      x[place] = -100;
      EXPECT_EQ(run_max(x, 3), 100) << n << ", " << place;
      EXPECT_EQ(run_max(x, 200), 200);
      for (double bad : {std::nan(""), -std::nan(""), kInfinity, -kInfinity}) {
        x[place] = bad;
        EXPECT_EQ(run_max(x, 3), kInfinity) << n << ", " << place;
      }
      x[place] = before;
    }
  }
  EXPECT_EQ(run_max({0x1p-126, -0x1p-125}, 0), 0x1p-125);
}

TEST_P(ReduceTest, FixedPointSquaresFollowTheFormula) {
  for (int64_t n : {0, 1, 7, 8, 1000, 4096, 4097, 70001, 1200007}) {
    for (double size : {1.0, 0x1p-60, 0x1p60}) {
      Values x = random_values(n, 1, size);
      if (n > 10) x[5] = 1000 * size;
      const SquareSum sum = run_squares({x});
      EXPECT_EQ(sum.total, oracle_squares(x)) << n;
      long double exact = 0;
      for (double value : x) exact += static_cast<long double>(value) * value;
      EXPECT_NEAR(sum.value, static_cast<double>(exact), 1e-8 * static_cast<double>(exact)) << n;
      EXPECT_LE(sum.value, exact);
    }
  }
}

TEST_P(ReduceTest, FixedPointSquaresDoNotDependOnWhoAddsThem) {
  const Values x = numbers_of_all_sizes(70001);
  const SquareSum whole = run_squares({x});
  EXPECT_EQ(whole.total, oracle_squares(x));
  Values reversed(x.rbegin(), x.rend());
  const SquareSum backwards = run_squares({reversed});
  EXPECT_EQ(backwards.value, whole.value);
  for (int64_t cut : {1, 1000, 4096, 33333}) {
    const SquareSum parts =
        run_squares({Values(x.begin(), x.begin() + cut), {}, Values(x.begin() + cut, x.end())});
    EXPECT_EQ(parts.total, whole.total) << cut;
    EXPECT_EQ(parts.value, whole.value) << cut;
  }
}

TEST_P(ReduceTest, FixedPointSquaresOutgrow64Bits) {
  const Values x(1 << 20, 1.9921875);  // terms near 2^50
  const SquareSum sum = run_squares({x, x, x});
  EXPECT_EQ(sum.total, 3 * oracle_squares(x));
  EXPECT_EQ(sum.value, 3 * (1 << 20) * 1.9921875 * 1.9921875);  // exact
}

TEST_P(ReduceTest, FixedPointValueCarriesAndRoundsOnce) {
  // 2^50 stands for scale^2 = 16.
  EXPECT_EQ(value_of(3, (int64_t{5} << 32) + 7, 2), std::ldexp((int64_t{8} << 32) + 7, 4 - 50));
  EXPECT_EQ(value_of(int64_t{1} << 48, (int64_t{1} << 62) + 1, 2),
            std::ldexp(0x1p80 + 0x1p62 + 1, 4 - 50));
  // the same sum in other limbs; a double has 53 bits
  EXPECT_EQ(value_of(1 << 21, 1, 2), 0x1p53 * 0x1p-46);
  EXPECT_EQ(value_of(1 << 21, 3, 2), (0x1p53 + 4) * 0x1p-46);
  EXPECT_EQ(value_of((1 << 21) - 1, (int64_t{1} << 32) + 3, 2), (0x1p53 + 4) * 0x1p-46);
  EXPECT_EQ(value_of(0, 0, 0), 0);
  EXPECT_EQ(value_of(5, 7, kInfinity), kInfinity);
}

TEST_P(ReduceTest, FixedPointSquaresOfZerosAndInfinityAddNothing) {
  const Buffer sums = make_int64_tensor({5, 7});
  const Buffer x = make_tensor(GetParam(), {3}, {0, 1, kInfinity});
  for (double largest : {0.0, kInfinity}) {
    add_fixed_point_squares(sums.view(), x.view(), make_double(largest).view(), stream_);
    EXPECT_EQ(to_host<int64_t>(sums.view()), (std::vector<int64_t>{5, 7}));
  }
  EXPECT_EQ(run_squares({{0, -0.0}}).value, 0);
  EXPECT_EQ(run_squares({{1, std::nan("")}}).value, kInfinity);
}

TEST_P(ReduceTest, FixedPointSquaresDoNotDependOnTheNumberOfThreads) {
  if (GetParam().device != Device::kCpu) GTEST_SKIP() << "CPU only";
  const Values x = numbers_of_all_sizes(1200007);
  expect_same_for_any_number_of_threads([&] { return Values{run_squares({x}).value}; });
}

TEST_P(ReduceTest, FixedPointSquaresRefuseOperandsThatDisagree) {
  const Buffer x = make_tensor(GetParam(), {4}, Values(4, 0.0)), largest = make_double(1);
  const Buffer sums = make_int64_tensor({0, 0});
  const TensorView one = sums.view().rows(0, 1);
  expect_error("out is int64 [1], wanted float64 [1]",
               [&] { max_magnitude(one, x.view(), stream_); });
  expect_error("sums is int64 [1], wanted int64 [2]",
               [&] { add_fixed_point_squares(one, x.view(), largest.view(), stream_); });
  expect_error("largest is int64 [2], wanted float64 [1]",
               [&] { add_fixed_point_squares(sums.view(), x.view(), sums.view(), stream_); });
  expect_error("out is int64 [2], wanted float64 [1]",
               [&] { fixed_point_value(sums.view(), sums.view(), largest.view(), stream_); });
  expect_error("sums is int64 [1], wanted int64 [2]",
               [&] { fixed_point_value(largest.view(), one, largest.view(), stream_); });
  expect_error("largest is int64 [2], wanted float64 [1]",
               [&] { fixed_point_value(largest.view(), sums.view(), sums.view(), stream_); });
}

TEST_P(ReduceTest, TreeSumAddsInItsTree) {
  const DType dtype = GetParam().dtype;
  for (int64_t count : {1, 2, 3, 4, 5, 6, 7, 8, 13, 64, 100}) {
    for (int64_t n : {0, 1, 7, 8, 1000, 8193}) {
      const Values x = numbers_of_all_sizes(count * n);
      const Values expected = oracle_tree_sum(x, count, dtype);
      EXPECT_EQ(run_tree_sum(x, count, dtype), expected) << count << " x " << n;
      EXPECT_EQ(run_tree_sum(x, count, wide(dtype)), expected) << count << " x " << n;
    }
  }
}

TEST_P(ReduceTest, TreeSumOfPartsIsTheTreeSum) {
  const Values x = numbers_of_all_sizes(8 * 1000);
  const Buffer rows = make_wide_tensor(GetParam(), {8, 10, 100}, x);
  const Buffer sums = empty_wide_tensor(GetParam(), {4, 1000});
  for (int64_t part = 0; part < 4; ++part) {
    tree_sum(sums.view().rows(part, part + 1).reshaped({10, 100}),
             rows.view().rows(2 * part, 2 * part + 2), stream_);
  }
  tree_sum(sums.view().rows(0, 1), sums.view(), stream_);  // over its first row
  EXPECT_EQ(to_doubles(sums.view().rows(0, 1)), oracle_tree_sum(x, 8, wide(GetParam().dtype)));
}

// 257 is no bfloat16: a sum that is rounded on the way comes to 256.
TEST_P(ReduceTest, TreeSumIsRoundedOnce) {
  EXPECT_EQ(run_tree_sum({256, 1, 1}, 3, GetParam().dtype), Values{258});
}

TEST_P(ReduceTest, AddAddsEveryElement) {
  for (int64_t n : {0, 1, 7, 8, 1000, 70001}) {
    const Values x = random_values(n, 1), y = random_values(n, 2);
    const Buffer out = make_tensor(GetParam(), {n}, x);
    add(out.view(), make_tensor(GetParam(), {n}, y).view(), stream_);
    Values sums = x;
    for (int64_t i = 0; i < n; ++i) sums[i] += y[i];  // exact
    EXPECT_EQ(to_doubles(out.view()), to_doubles(make_tensor(GetParam(), {n}, sums).view())) << n;
  }
}

TEST_P(ReduceTest, TreeSumAndAddRefuseOperandsThatDisagree) {
  const Buffer x = make_tensor(GetParam(), {2, 3}, Values(6, 0.0));
  const Buffer integers = make_int_tensor(GetParam(), {1, 2, 3});
  const TensorView row = x.view().rows(0, 1), none = x.view().rows(0, 0);
  expect_error("x has shape [0, 3], wanted [at least 1, n...]",
               [&] { tree_sum(row, none, stream_); });
  expect_error("out has shape [2, 3], wanted a row of x, of shape [2, 3]",
               [&] { tree_sum(x.view(), x.view(), stream_); });
  expect_error("x is ", [&] { tree_sum(integers.view(), x.view(), stream_); });
  expect_error("x has shape [1, 3], wanted [2, 3]", [&] { add(x.view(), row, stream_); });
  expect_error("x is int32", [&] { add(row.reshaped({3}), integers.view(), stream_); });
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
