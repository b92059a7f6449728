#include "mirabelle/kernels/token_levels.h"

#include "support/backends.h"
#include "support/errors.h"
#include "support/threads.h"

namespace mirabelle::testing {
namespace {

using Values = std::vector<double>;
using Indices = std::vector<int32_t>;

/// Of levels of 3, 1 and 250 tokens; below and above them are others.
const Indices kBounds = {2, 5, 6, 256};

/// The level of a token of these bounds, or -1.
int oracle_level(int32_t token) {
  if (token < 2 || token >= 256) return -1;
  return token < 5 ? 0 : token == 5 ? 1 : 2;
}

/// Every level, its first and last tokens, and those that have none.
Indices some_tokens(int64_t n) {
  const Indices cases = {2, 4, 5, 6, 255, 256, 1, 0, -1, 300, 100, -2147483647};
  Random random(random_key(3, "tokens"));
  Indices tokens;
  for (int64_t i = 0; i < n; ++i) tokens.push_back(cases[random.below(cases.size())]);
  return tokens;
}

class TokenLevelsTest : public BackendTest {
 protected:
  static Buffer make_double_tensor(const Values& values) {
    return make_tensor(GetParam().device, DType::kFloat64, {static_cast<int64_t>(values.size())},
                       values);
  }
  Values gather(const Indices& tokens, const Values& weights) {
    const int64_t n = static_cast<int64_t>(tokens.size());
    const Buffer out = make_tensor(GetParam(), {n}, Values(n, 99));
    gather_level_weights(out.view(), make_int_tensor(GetParam(), tokens).view(),
                         make_int_tensor(GetParam(), kBounds).view(),
                         make_double_tensor(weights).view(), stream_);
    return to_doubles(out.view());
  }
  Values sum(const Values& x, const Indices& tokens, const Values& before) {
    const Buffer sums = make_double_tensor(before);
    add_level_sums(sums.view(), make_tensor(GetParam(), {static_cast<int64_t>(x.size())}, x).view(),
                   make_int_tensor(GetParam(), tokens).view(),
                   make_int_tensor(GetParam(), kBounds).view(), stream_);
    return to_doubles(sums.view());
  }
};

TEST_P(TokenLevelsTest, EveryTokenGetsTheWeightOfItsLevelAndOthersOne) {
  const Values weights = {0.25, 3, 0};  // numbers of every dtype
  for (const int64_t n : {0, 1, 7, 257, 1000, 40000}) {
    const Indices tokens = some_tokens(n);
    Values expected;
    for (const int32_t token : tokens) {
      const int level = oracle_level(token);
      expected.push_back(level < 0 ? 1 : weights[level]);
    }
    EXPECT_EQ(gather(tokens, weights), expected) << n;
  }
}

TEST_P(TokenLevelsTest, SumsAreThoseOfTheFormulaAndAdded) {
  for (const int64_t n : {0, 1, 7, 1024, 1025, 40001}) {
    const Values x = random_values(n, 1);
    const Indices tokens = some_tokens(n);
    Values expected = {1, -2, 1e6};
    for (int64_t i = 0; i < n; ++i) {
      if (oracle_level(tokens[i]) >= 0) expected[oracle_level(tokens[i])] += x[i];
    }
    // in float64 whatever the dtype of x, which is exact
    expect_near(sum(x, tokens, {1, -2, 1e6}), expected, 1e-13 * static_cast<double>(n + 1), "sums");
  }
}

TEST_P(TokenLevelsTest, GivesTheSameBitsEveryTimeWithAnyNumberOfThreads) {
  const Values x = random_values(40001, 1);
  const Indices tokens = some_tokens(40001);
  EXPECT_EQ(sum(x, tokens, {0, 0, 0}), sum(x, tokens, {0, 0, 0}));
  if (GetParam().device != Device::kCpu) return;
  expect_same_for_any_number_of_threads([&] { return sum(x, tokens, {0, 0, 0}); });
  expect_same_for_any_number_of_threads([&] { return gather(tokens, {0.3, 1, 2}); });
}

TEST_P(TokenLevelsTest, RefusesOperandsThatDisagree) {
  const Buffer values = make_tensor(GetParam(), {2}, {0, 0});
  const Buffer tokens = make_int_tensor(GetParam(), {3, 4});
  const Buffer bounds = make_int_tensor(GetParam(), kBounds);
  const Buffer levels = make_double_tensor({1, 1, 1});
  const TensorView v = values.view(), t = tokens.view(), b = bounds.view(), l = levels.view();
  expect_error("out has shape [2], wanted [1]",
               [&] { gather_level_weights(v, t.rows(0, 1), b, l, stream_); });
  expect_error("tokens is", [&] { gather_level_weights(v, v, b, l, stream_); });
  expect_error("level_bounds have shape [1], wanted",
               [&] { gather_level_weights(v, t, b.rows(0, 1), l, stream_); });
  expect_error("weights has shape [2], wanted [3]",
               [&] { gather_level_weights(v, t, b, l.rows(0, 2), stream_); });
  expect_error("x has shape [1], wanted [2]",
               [&] { add_level_sums(l, v.rows(0, 1), t, b, stream_); });
  expect_error("sums has shape [3], wanted [2]",
               [&] { add_level_sums(l, v, t, b.rows(0, 3), stream_); });
  expect_error("sums is int32, wanted float64",
               [&] { add_level_sums(b.rows(0, 3), v, t, b, stream_); });
}

MIRABELLE_INSTANTIATE_BACKENDS(TokenLevelsTest);

}  // namespace
}  // namespace mirabelle::testing
