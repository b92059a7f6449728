#include "../kernels/cpu/vector_math.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

namespace mirabelle::backend {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(FastExpTest, IsWithinTwoUnitsInTheLastPlaceEverywhere) {
  double worst = 0;
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += 1009) {
    const float x = std::bit_cast<float>(static_cast<uint32_t>(bits));
    if (!(x > -103.9f && x < 88.7f)) continue;  // where the result is neither 0 nor infinity
    const double exact = std::exp(static_cast<double>(x));
    const double unit = std::ldexp(1.0, std::max(std::ilogb(exact) - 23, -149));
    worst = std::max(worst, std::abs(fast_exp(x) - exact) / unit);
  }
  EXPECT_LE(worst, 2);
  EXPECT_GT(worst, 0.4);  // the test does see the errors of rounding
}

TEST(FastExpTest, UnderflowsToZeroAndOverflowsToInfinity) {
  for (float x : {-104.1f, -200.0f, -1e10f, -std::numeric_limits<float>::max(), -kInfinity}) {
    EXPECT_EQ(fast_exp(x), 0.0f) << x;
  }
  for (float x : {88.8f, 89.0f, 200.0f, 1e10f, std::numeric_limits<float>::max(), kInfinity}) {
    EXPECT_EQ(fast_exp(x), kInfinity) << x;
  }
}

TEST(FastExpTest, KeepsDenormalsZeroAndNaN) {
  EXPECT_NEAR(fast_exp(-90.0f) / std::exp(-90.0), 1, 1e-3);
  EXPECT_EQ(fast_exp(0.0f), 1.0f);
  EXPECT_EQ(fast_exp(-0.0f), 1.0f);
  EXPECT_TRUE(std::isnan(fast_exp(std::nanf(""))));
}

TEST(FastExpTest, Float64TakesTheStandardFunction) {
  for (double x : {-745.0, -1.5, 0.0, 3.25, 709.0}) EXPECT_EQ(fast_exp(x), std::exp(x));
}

}  // namespace
}  // namespace mirabelle::backend
