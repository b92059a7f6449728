#include "mirabelle/kernels/rotary_embedding.h"

#include "support/backends.h"
#include "support/errors.h"
#include "support/threads.h"

namespace mirabelle::testing {
namespace {

using Values = std::vector<double>;

struct Sizes {
  int64_t num_tokens, num_kv_heads, group_size, head_dim;
  Shape shape() const { return {num_tokens, num_kv_heads, group_size + 2, head_dim}; }
};

/// Each pair (i, i + half) of queries and keys as a complex number, times exp(sign * angle * I).
Values oracle(Values qkv, const std::vector<int32_t>& positions, const Sizes& s, double theta,
              double sign) {
  const int64_t half = s.head_dim / 2;
  for (int64_t token = 0; token < s.num_tokens; ++token) {
    for (int64_t kv_head = 0; kv_head < s.num_kv_heads; ++kv_head) {
      for (int64_t head = 0; head <= s.group_size; ++head) {
        double* x =
            &qkv[((token * s.num_kv_heads + kv_head) * (s.group_size + 2) + head) * s.head_dim];
        for (int64_t i = 0; i < half; ++i) {
          const double angle =
              sign * positions[token] / std::pow(theta, static_cast<double>(2 * i) / s.head_dim);
          const double real = x[i], imaginary = x[i + half];
          x[i] = real * std::cos(angle) - imaginary * std::sin(angle);
          x[i + half] = imaginary * std::cos(angle) + real * std::sin(angle);
        }
      }
    }
  }
  return qkv;
}

class RotaryEmbeddingTest : public BackendTest {
 protected:
  static constexpr double kTheta = 10000;

  Buffer table(int64_t max_seq_len, int64_t head_dim) {
    Buffer result = empty_wide_tensor(GetParam(), {max_seq_len, head_dim / 2, 2});
    fill_rotary_table(result.view(), kTheta, stream_);
    return result;
  }

  Values rotated(const Values& qkv, const std::vector<int32_t>& positions, const Sizes& s,
                 Rotation rotation) {
    Buffer buffer = make_tensor(GetParam(), s.shape(), qkv);
    rotate_queries_and_keys(buffer.view(), make_int_tensor(GetParam(), positions).view(),
                            table(50, s.head_dim).view(), rotation, stream_);
    return to_doubles(buffer.view());
  }

  static std::vector<int32_t> some_positions(int64_t n) {
    std::vector<int32_t> positions(n);
    for (int64_t i = 0; i < n; ++i) positions[i] = static_cast<int32_t>(i * 7 % 50);
    return positions;
  }
};

TEST_P(RotaryEmbeddingTest, TableHoldsCosineAndSineOfEachAngle) {
  const double tolerance = GetParam().dtype == DType::kBFloat16 ? 1e-5 : GetParam().tolerance;
  const Values values = to_doubles(table(5000, 6).view());
  for (int64_t position : {0, 1, 17, 4999}) {
    for (int64_t i = 0; i < 3; ++i) {
      const double angle = position * std::exp(-std::log(kTheta) * 2 * i / 6.0);
      EXPECT_NEAR(values[(position * 3 + i) * 2], std::cos(angle), tolerance);
      EXPECT_NEAR(values[(position * 3 + i) * 2 + 1], std::sin(angle), tolerance);
    }
  }
}

TEST_P(RotaryEmbeddingTest, RotatesQueriesAndKeysAndKeepsValues) {
  for (const Sizes& s : {Sizes{1, 1, 1, 2}, {7, 2, 3, 10}, {3, 1, 1, 64}, {301, 2, 2, 32}}) {
    const Values qkv = random_values(s.shape().num_elements(), 1);
    const auto positions = some_positions(s.num_tokens);
    expect_near(rotated(qkv, positions, s, Rotation::kForward),
                oracle(qkv, positions, s, kTheta, 1), 4 * GetParam().tolerance, "qkv");
  }
}

TEST_P(RotaryEmbeddingTest, BackwardMatchesFiniteDifferences) {
  const Sizes s{3, 2, 2, 6};
  const int64_t n = s.shape().num_elements();
  const Values qkv = random_values(n, 1), grad = random_values(n, 2);
  const auto positions = some_positions(3);
  const Values expected = finite_differences(
      [&](const Values& x) { return dot(oracle(x, positions, s, kTheta, 1), grad); }, qkv);
  expect_near(rotated(grad, positions, s, Rotation::kBackward), expected,
              4 * GetParam().tolerance + 1e-8, "grad_qkv");
}

TEST_P(RotaryEmbeddingTest, BackwardUndoesForward) {
  const Sizes s{9, 1, 3, 8};
  const Values qkv = random_values(s.shape().num_elements(), 1);
  const auto positions = some_positions(9);
  expect_near(
      rotated(rotated(qkv, positions, s, Rotation::kForward), positions, s, Rotation::kBackward),
      qkv, 4 * GetParam().tolerance, "qkv");
}

TEST_P(RotaryEmbeddingTest, ScoresDependOnTheDistanceOnly) {
  const Sizes s{2, 1, 1, 16};
  const Values qkv = random_values(s.shape().num_elements(), 1);
  const auto score = [&](int32_t query, int32_t key) {
    const Values x = rotated(qkv, {query, key}, s, Rotation::kForward);
    double total = 0;
    for (int i = 0; i < 16; ++i) total += x[i] * x[48 + 16 + i];  // token 0's query, token 1's key
    return total;
  };
  const double factor = GetParam().dtype == DType::kBFloat16 ? 10 : 50;  // two roundings a product
  EXPECT_NEAR(score(12, 5), score(49, 42), factor * GetParam().tolerance);
  EXPECT_GT(std::abs(score(12, 5) - score(13, 5)), 0.01);
}

TEST_P(RotaryEmbeddingTest, TakesNoTokens) {
  EXPECT_TRUE(rotated({}, {}, {0, 2, 1, 4}, Rotation::kForward).empty());
}

TEST_P(RotaryEmbeddingTest, DoesNotDependOnTheNumberOfThreads) {
  if (GetParam().device != Device::kCpu) GTEST_SKIP() << "CPU only";
  const Sizes s{401, 1, 2, 24};
  const Values qkv = random_values(s.shape().num_elements(), 1);
  expect_same_for_any_number_of_threads(
      [&] { return rotated(qkv, some_positions(401), s, Rotation::kForward); });
}

TEST_P(RotaryEmbeddingTest, RefusesOperandsThatDisagree) {
  const Backend& backend = GetParam();
  const Buffer qkv = make_tensor(backend, {2, 1, 3, 4}, Values(24, 0.0));
  const Buffer odd = make_tensor(backend, {2, 1, 3, 5}, Values(30, 0.0));
  const Buffer cos_sin = table(50, 4), wider = table(50, 6);
  const Buffer positions = make_int_tensor(backend, {0, 49});
  const auto rotate = [&](const TensorView& x, const TensorView& p, const TensorView& t) {
    rotate_queries_and_keys(x, p, t, Rotation::kForward, stream_);
  };
  rotate(qkv.view(), positions.view(), cos_sin.view());
  expect_error("qkv has shape [2, 12], wanted", [&] {
    rotate(qkv.view().reshaped({2, 12}), positions.view(), cos_sin.view());
  });
  expect_error("qkv has shape [2, 3, 1, 4], wanted", [&] {
    rotate(qkv.view().reshaped({2, 3, 1, 4}), positions.view(), cos_sin.view());
  });
  expect_error("head_dim is 5, wanted an even number",
               [&] { rotate(odd.view(), positions.view(), cos_sin.view()); });
  expect_error("table has shape [50, 3, 2], wanted [50, 2, 2]",
               [&] { rotate(qkv.view(), positions.view(), wider.view()); });
  expect_error("table has shape [100, 2], wanted", [&] {
    rotate(qkv.view(), positions.view(), cos_sin.view().reshaped({100, 2}));
  });
  expect_error("positions has shape [1], wanted [2]",
               [&] { rotate(qkv.view(), positions.view().rows(0, 1), cos_sin.view()); });
  expect_error("positions is", [&] {
    rotate(qkv.view(), cos_sin.view().rows(0, 1).reshaped({4}).rows(0, 2), cos_sin.view());
  });
  expect_error("table has shape [50, 4], wanted [max_seq_len", [&] {
    fill_rotary_table(cos_sin.view().reshaped({50, 4}), kTheta, stream_);
  });
  expect_error("theta is 0", [&] { fill_rotary_table(cos_sin.view(), 0, stream_); });
}

TEST_P(RotaryEmbeddingTest, RefusesPositionsOutOfRange) {
  if (GetParam().device != Device::kCpu) GTEST_SKIP() << "CPU only";
  const Sizes s{2, 1, 1, 4};
  const Values qkv(s.shape().num_elements(), 0.0);
  expect_error("positions[1] is 50, wanted 0 .. 49", [&] {
    rotated(qkv, {0, 50}, s, Rotation::kForward);
  });
  expect_error("positions[0] is -1, wanted 0 .. 49", [&] {
    rotated(qkv, {-1, 50}, s, Rotation::kForward);
  });
}

MIRABELLE_INSTANTIATE_BACKENDS(RotaryEmbeddingTest);

}  // namespace
}  // namespace mirabelle::testing
