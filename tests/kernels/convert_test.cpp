#include "mirabelle/kernels/convert.h"

#include "support/backends.h"
#include "support/errors.h"

namespace mirabelle::testing {
namespace {

class ConvertTest : public BackendTest {};

TEST_P(ConvertTest, RoundsEveryElementToTheDtype) {
  for (int64_t n : {0, 1, 7, 8, 1000, 40001}) {
    std::vector<double> values(n), expected(n);
    for (int64_t i = 0; i < n; ++i) {
      const auto value = static_cast<float>(random_normal(random_key(3, "convert"), i));
      values[i] = value;
      expected[i] = GetParam().dtype == DType::kBFloat16 ? BFloat16(value) : value;
    }
    const Buffer x = make_wide_tensor(GetParam(), {n}, values), out = empty_tensor(GetParam(), {n});
    round_to(out.view(), x.view(), stream_);
    EXPECT_EQ(to_doubles(out.view()), expected);
  }
}

TEST_P(ConvertTest, RefusesOperandsThatDisagree) {
  const Buffer x = empty_wide_tensor(GetParam(), {4}), out = empty_tensor(GetParam(), {4});
  expect_error("x has shape [2, 2], wanted [4]", [&] {
    round_to(out.view(), x.view().reshaped({2, 2}), stream_);
  });
  const Buffer integers({4}, DType::kInt32, GetParam().device);
  expect_error("x is int32, wanted", [&] { round_to(out.view(), integers.view(), stream_); });
}

MIRABELLE_INSTANTIATE_BACKENDS(ConvertTest);

}  // namespace
}  // namespace mirabelle::testing
