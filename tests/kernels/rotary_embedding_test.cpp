#include "mirabelle/kernels/rotary_embedding.h"

#include "support/backends.h"
#include "support/errors.h"
#include "support/threads.h"

namespace mirabelle::testing {
namespace {

using Values = std::vector<double>;

struct Sizes {
  int64_t num_tokens, num_kv_heads, group_size, head_dim;
  Shape projected_shape() const { return {num_tokens, num_kv_heads, group_size + 2, head_dim}; }
  Shape qkv_shape() const { return {num_tokens, num_kv_heads * (group_size + 2), head_dim}; }
};

/// From the projection's layout to all queries, all keys, all values; each pair (i, i + half) of
/// queries and keys as a complex number, times exp(angle * I).
Values oracle(const Values& projected, const std::vector<int32_t>& positions, const Sizes& s,
              double theta) {
  const int64_t half = s.head_dim / 2;
  Values qkv;
  const auto append = [&](int64_t token, int64_t kv_head, int64_t slot) {
    const double* x =
        &projected[((token * s.num_kv_heads + kv_head) * (s.group_size + 2) + slot) * s.head_dim];
    if (slot == s.group_size + 1) return (void)qkv.insert(qkv.end(), x, x + s.head_dim);
    Values rotated(s.head_dim);
    for (int64_t i = 0; i < half; ++i) {
      const double angle =
          positions[token] / std::pow(theta, static_cast<double>(2 * i) / s.head_dim);
      rotated[i] = x[i] * std::cos(angle) - x[i + half] * std::sin(angle);
      rotated[i + half] = x[i + half] * std::cos(angle) + x[i] * std::sin(angle);
    }
    qkv.insert(qkv.end(), rotated.begin(), rotated.end());
  };
  for (int64_t token = 0; token < s.num_tokens; ++token) {
    for (int64_t head = 0; head < s.num_kv_heads * s.group_size; ++head) {
      append(token, head / s.group_size, head % s.group_size);
    }
    for (const int64_t slot : {s.group_size, s.group_size + 1}) {
      for (int64_t kv_head = 0; kv_head < s.num_kv_heads; ++kv_head) append(token, kv_head, slot);
    }
  }
  return qkv;
}

class RotaryEmbeddingTest : public BackendTest {
 protected:
  static constexpr double kTheta = 10000;

  Buffer table(int64_t max_seq_len, int64_t head_dim) {
    Buffer result = empty_wide_tensor(GetParam(), {max_seq_len, head_dim / 2, 2});
    fill_rotary_table(result.view(), rotary_frequencies(head_dim, kTheta), 1, stream_);
    return result;
  }

  Values forward(const Values& projected, const std::vector<int32_t>& positions, const Sizes& s) {
    const Buffer from = make_tensor(GetParam(), s.projected_shape(), projected);
    const Buffer qkv = empty_tensor(GetParam(), s.qkv_shape());
    split_and_rotate(qkv.view(), from.view(), make_int_tensor(GetParam(), positions).view(),
                     table(50, s.head_dim).view(), stream_);
    return to_doubles(qkv.view());
  }
  Values backward(const Values& grad_qkv, const std::vector<int32_t>& positions, const Sizes& s) {
    const Buffer from = make_tensor(GetParam(), s.qkv_shape(), grad_qkv);
    const Buffer grad_projected = empty_tensor(GetParam(), s.projected_shape());
    split_and_rotate_backward(grad_projected.view(), from.view(),
                              make_int_tensor(GetParam(), positions).view(),
                              table(50, s.head_dim).view(), stream_);
    return to_doubles(grad_projected.view());
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

TEST_P(RotaryEmbeddingTest, SplitsAndRotatesQueriesAndKeysAndKeepsValues) {
  for (const Sizes& s : {Sizes{1, 1, 1, 2}, {7, 2, 3, 10}, {3, 1, 1, 64}, {301, 3, 2, 32}}) {
    const Values projected = random_values(s.qkv_shape().num_elements(), 1);
    const auto positions = some_positions(s.num_tokens);
    expect_near(forward(projected, positions, s), oracle(projected, positions, s, kTheta),
                4 * GetParam().tolerance, "qkv");
  }
}

TEST_P(RotaryEmbeddingTest, BackwardMatchesFiniteDifferences) {
  const Sizes s{3, 2, 2, 6};
  const int64_t n = s.qkv_shape().num_elements();
  const Values projected = random_values(n, 1), grad = random_values(n, 2);
  const auto positions = some_positions(3);
  const Values expected = finite_differences(
      [&](const Values& x) { return dot(oracle(x, positions, s, kTheta), grad); }, projected);
  expect_near(backward(grad, positions, s), expected, 4 * GetParam().tolerance + 1e-8,
              "grad_projected");
}

TEST_P(RotaryEmbeddingTest, BackwardUndoesForward) {
  for (const Sizes& s : {Sizes{9, 1, 3, 8}, {301, 3, 2, 32}}) {
    const Values projected = random_values(s.qkv_shape().num_elements(), 1);
    const auto positions = some_positions(s.num_tokens);
    expect_near(backward(forward(projected, positions, s), positions, s), projected,
                4 * GetParam().tolerance, "projected");
  }
}

TEST_P(RotaryEmbeddingTest, ScoresDependOnTheDistanceOnly) {
  const Sizes s{2, 1, 1, 16};
  const Values projected = random_values(s.qkv_shape().num_elements(), 1);
  const auto score = [&](int32_t query, int32_t key) {
    const Values x = forward(projected, {query, key}, s);
    double total = 0;
    for (int i = 0; i < 16; ++i) total += x[i] * x[48 + 16 + i];  // token 0's query, token 1's key
    return total;
  };
  const double factor = GetParam().dtype == DType::kBFloat16 ? 10 : 50;  // two roundings a product
  EXPECT_NEAR(score(12, 5), score(49, 42), factor * GetParam().tolerance);
  EXPECT_GT(std::abs(score(12, 5) - score(13, 5)), 0.01);
}

TEST_P(RotaryEmbeddingTest, TakesNoTokens) {
  EXPECT_TRUE(forward({}, {}, {0, 2, 1, 4}).empty());
  EXPECT_TRUE(backward({}, {}, {0, 2, 1, 4}).empty());
}

TEST_P(RotaryEmbeddingTest, DoesNotDependOnTheNumberOfThreads) {
  if (GetParam().device != Device::kCpu) GTEST_SKIP() << "CPU only";
  const Sizes s{401, 1, 2, 24};
  const Values values = random_values(s.qkv_shape().num_elements(), 1);
  expect_same_for_any_number_of_threads([&] { return forward(values, some_positions(401), s); });
  expect_same_for_any_number_of_threads([&] { return backward(values, some_positions(401), s); });
}

/// Both directions refuse what disagrees.
TEST_P(RotaryEmbeddingTest, RefusesOperandsThatDisagree) {
  const Backend& backend = GetParam();
  const Buffer projected = empty_tensor(backend, {2, 1, 3, 4});
  const Buffer qkv = empty_tensor(backend, {2, 3, 4}), other = empty_tensor(backend, {2, 4, 3});
  const Buffer odd = empty_tensor(backend, {2, 1, 3, 5}),
               odd_qkv = empty_tensor(backend, {2, 3, 5});
  const Buffer cos_sin = table(50, 4), wider = table(50, 6);
  const Buffer indices = make_int_tensor(backend, {0, 49});
  const TensorView p = projected.view(), q = qkv.view(), t = cos_sin.view(), at = indices.view();
  const auto expect_both = [&](const std::string& message, const TensorView& from,
                               const TensorView& to, const TensorView& positions,
                               const TensorView& table) {
    expect_error(message, [&] { split_and_rotate(to, from, positions, table, stream_); });
    expect_error(message, [&] { split_and_rotate_backward(from, to, positions, table, stream_); });
  };
  split_and_rotate(q, p, at, t, stream_);
  split_and_rotate_backward(p, q, at, t, stream_);
  expect_both("projected has shape [2, 12], wanted", p.reshaped({2, 12}), q, at, t);
  expect_both("projected has shape [2, 3, 1, 4], wanted", p.reshaped({2, 3, 1, 4}), q, at, t);
  expect_both("qkv has shape [2, 4, 3], wanted [2, 3, 4]", p, other.view(), at, t);
  expect_both("head_dim is 5, wanted an even number", odd.view(), odd_qkv.view(), at, t);
  expect_both("table has shape [50, 3, 2], wanted [50, 2, 2]", p, q, at, wider.view());
  expect_both("table has shape [100, 2], wanted", p, q, at, t.reshaped({100, 2}));
  expect_both("positions has shape [1], wanted [2]", p, q, at.rows(0, 1), t);
  expect_both("positions is", p, q, t.rows(0, 1).reshaped({4}).rows(0, 2), t);
  const Values frequencies = rotary_frequencies(4, kTheta);
  expect_error("table has shape [50, 4], wanted [max_seq_len, 2, 2]", [&] {
    fill_rotary_table(cos_sin.view().reshaped({50, 4}), frequencies, 1, stream_);
  });
  expect_error("theta is 0", [&] { rotary_frequencies(4, 0); });
}

TEST_P(RotaryEmbeddingTest, TheTableTakesAnyFrequenciesAndAnAmplitude) {
  const Buffer table = empty_wide_tensor(GetParam(), {4, 2, 2});
  fill_rotary_table(table.view(), Values{0.5, 2}, 3, stream_);
  const Values expected = {3,
                           0,
                           3,
                           0,
                           3 * std::cos(0.5),
                           3 * std::sin(0.5),
                           3 * std::cos(2.0),
                           3 * std::sin(2.0),
                           3 * std::cos(1.0),
                           3 * std::sin(1.0),
                           3 * std::cos(4.0),
                           3 * std::sin(4.0),
                           3 * std::cos(1.5),
                           3 * std::sin(1.5),
                           3 * std::cos(6.0),
                           3 * std::sin(6.0)};
  expect_near(to_doubles(table.view()), expected, 1e-6, "table");
}

TEST_P(RotaryEmbeddingTest, RefusesPositionsOutOfRange) {
  if (GetParam().device != Device::kCpu) GTEST_SKIP() << "CPU only";
  const Sizes s{2, 1, 1, 4};
  const Values zeros(s.qkv_shape().num_elements());
  for (const auto& [position, message] :
       {std::pair{50, "positions[1] is 50, wanted 0 .. 49"}, {-1, "positions[1] is -1, wanted"}}) {
    expect_error(message, [&] { forward(zeros, {0, position}, s); });
    expect_error(message, [&] { backward(zeros, {0, position}, s); });
  }
}

MIRABELLE_INSTANTIATE_BACKENDS(RotaryEmbeddingTest);

}  // namespace
}  // namespace mirabelle::testing
