#include "mirabelle/kernels/embedding.h"

#include <string>

#include "support/backends.h"
#include "support/dropout_oracle.h"
#include "support/errors.h"
#include "support/threads.h"

namespace mirabelle::testing {
namespace {

using Values = std::vector<double>;
using Indices = std::vector<int32_t>;

Indices some_tokens(int64_t n, int64_t vocab_size) {
  Random random(random_key(5, "tokens"));
  Indices tokens(n);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random.below(vocab_size));
  return tokens;
}

class EmbeddingTest : public BackendTest {
 protected:
  Dropout dropout(double rate, const std::vector<int32_t>& lengths) {
    coordinates_ = packed_coordinates(lengths, 3);
    sequence_ids_ = make_int_tensor(GetParam(), coordinates_.sequence_ids);
    positions_ = make_int_tensor(GetParam(), coordinates_.positions);
    key_ = make_key(GetParam(), kDropoutKey);
    return {rate, key_.view(), sequence_ids_.view(), positions_.view()};
  }
  double keep(const Dropout& dropout, int64_t token, int64_t feature) const {
    if (dropout.rate == 0) return 1;
    return oracle_keep(dropout, coordinates_.sequence_ids[token], coordinates_.positions[token],
                       feature);
  }
  Values oracle_forward(const Values& table, const Indices& tokens, int64_t hidden_size,
                        const Dropout& dropout) const {
    Values out;
    for (size_t t = 0; t < tokens.size(); ++t) {
      for (int64_t i = 0; i < hidden_size; ++i) {
        out.push_back(keep(dropout, t, i) * table[tokens[t] * hidden_size + i]);
      }
    }
    return out;
  }

  Values forward(const Values& table, int64_t vocab_size, const Indices& tokens,
                 int64_t hidden_size, const Dropout& dropout, int64_t first_token = 0) {
    const Buffer out = empty_tensor(GetParam(), {static_cast<int64_t>(tokens.size()), hidden_size});
    embedding_forward(out.view(), make_int_tensor(GetParam(), tokens).view(),
                      make_tensor(GetParam(), {vocab_size, hidden_size}, table).view(), first_token,
                      dropout, stream_);
    return to_doubles(out.view());
  }
  Values backward(const Values& before, int64_t vocab_size, const Indices& tokens,
                  const Values& grad_out, int64_t hidden_size, const Dropout& dropout,
                  int64_t first_token = 0) {
    const Buffer grad = make_wide_tensor(GetParam(), {vocab_size, hidden_size}, before);
    const Shape shape{static_cast<int64_t>(tokens.size()), hidden_size};
    embedding_backward(grad.view(), make_tensor(GetParam(), shape, grad_out).view(),
                       make_int_tensor(GetParam(), tokens).view(), first_token, dropout, stream_);
    return to_doubles(grad.view());
  }

  /// Sums are computed in the wide dtype.
  static double grad_tolerance() {
    return GetParam().dtype == DType::kBFloat16 ? 1e-5 : GetParam().tolerance;
  }

  Coordinates coordinates_;
  Buffer sequence_ids_, positions_, key_;
};

TEST_P(EmbeddingTest, ForwardCopiesRows) {
  for (const auto& [n, vocab, hidden] :
       {std::array<int64_t, 3>{1, 1, 1}, {7, 5, 3}, {1000, 17, 129}, {500, 17, 264}}) {
    const Values table = random_values(vocab * hidden, 1);
    const Indices tokens = some_tokens(n, vocab);
    EXPECT_EQ(forward(table, vocab, tokens, hidden, {}), oracle_forward(table, tokens, hidden, {}));
  }
}

TEST_P(EmbeddingTest, ForwardDropsTheElementsThatTheHeaderNames) {
  for (int64_t hidden : {1, 7, 127, 128, 131, 300}) {
    const Dropout some = dropout(0.3, {4, 0, 9});
    const Values table = random_values(5 * hidden, 1);
    const Indices tokens = some_tokens(13, 5);
    expect_near(forward(table, 5, tokens, hidden, some),
                oracle_forward(table, tokens, hidden, some), GetParam().tolerance, "out");
  }
}

TEST_P(EmbeddingTest, BackwardMatchesFiniteDifferences) {
  const int64_t hidden = 11;
  const Indices tokens = {2, 0, 2, 2, 3, 0};
  const Values table = random_values(5 * hidden, 1), grad_out = random_values(6 * hidden, 2);
  for (double rate : {0.0, 0.4}) {
    const Dropout some = dropout(rate, {2, 4});
    const Values expected = finite_differences(
        [&](const Values& x) { return dot(oracle_forward(x, tokens, hidden, some), grad_out); },
        table);
    expect_near(backward(Values(5 * hidden, 0.0), 5, tokens, grad_out, hidden, some), expected,
                4 * grad_tolerance() + 1e-8, "grad_table");
  }
}

TEST_P(EmbeddingTest, BackwardSumsAllTokensOfARow) {
  for (const auto& [n, vocab, hidden] :
       {std::array<int64_t, 3>{1000, 17, 131}, {1000, 17, 264}, {300, 1, 8}, {5, 1000, 257}}) {
    const Indices tokens = some_tokens(n, vocab);
    const Values before = random_values(vocab * hidden, 1), grad_out = random_values(n * hidden, 2);
    const Dropout some = dropout(0.3, {static_cast<int32_t>(n)});
    Values expected = before;
    for (int64_t t = 0; t < n; ++t) {
      for (int64_t i = 0; i < hidden; ++i) {
        expected[tokens[t] * hidden + i] += keep(some, t, i) * grad_out[t * hidden + i];
      }
    }
    expect_near(backward(before, vocab, tokens, grad_out, hidden, some), expected,
                10 * grad_tolerance(), "grad_table");
  }
}

TEST_P(EmbeddingTest, BackwardAddsToTheGradient) {
  const Indices tokens = {1, 1};
  const Values grad = backward({1, 2, 3, 4, 5, 6}, 3, tokens, {10, 20, 30, 40}, 2, {});
  EXPECT_EQ(grad, (Values{1, 2, 3 + 40, 4 + 60, 5, 6}));
}

TEST_P(EmbeddingTest, BackwardAddsInTheOrderOfTheTokens) {
  // to which adding 1 changes nothing, so that the order shows in the result
  const double large = wide(GetParam().dtype) == DType::kFloat32 ? 0x1p24 : 0x1p53;
  EXPECT_EQ(backward({0}, 1, {0, 0, 0}, {large, 1, -large}, 1, {}), (Values{0}));
  EXPECT_EQ(backward({0}, 1, {0, 0, 0}, {large, -large, 1}, 1, {}), (Values{1}));
}

TEST_P(EmbeddingTest, ForwardAndBackwardDropTheSameElements) {
  const int64_t n = 60, hidden = 200;
  const Dropout some = dropout(0.5, {60});
  Indices tokens(n);
  for (int64_t t = 0; t < n; ++t) tokens[t] = static_cast<int32_t>(t);
  const Values ones(n * hidden, 1.0);
  EXPECT_EQ(forward(ones, n, tokens, hidden, some),
            backward(Values(n * hidden, 0.0), n, tokens, ones, hidden, some));
}

TEST_P(EmbeddingTest, DropsTheAskedFractionAndKeepsTheMean) {
  // of the scale, which is the same for all elements
  const double rounding = GetParam().dtype == DType::kBFloat16 ? 0x1p-8 : 0;
  const int64_t n = 1000, hidden = 128;
  for (double rate : {0.1, 0.5, 0.9}) {
    const Dropout some = dropout(rate, {400, 600});
    const Values ones(hidden, 1.0);
    const Values out = forward(ones, 1, Indices(n, 0), hidden, some);
    // so many that some have exactly the bits of the threshold
    expect_near(out, oracle_forward(ones, Indices(n, 0), hidden, some), GetParam().tolerance,
                "out");
    const double total = static_cast<double>(out.size());
    double dropped = 0, sum = 0;
    for (double value : out) {
      dropped += value == 0;
      sum += value;
      if (value != 0) {
        ASSERT_NEAR(value, 1 / (1 - rate), (1e-3 + rounding) / (1 - rate));
      }
    }
    const double deviation = std::sqrt(rate * (1 - rate) / total);
    EXPECT_NEAR(dropped / total, rate, 5 * deviation + 1e-5);
    EXPECT_NEAR(sum / total, 1, 5 * deviation / (1 - rate) + 1e-5 + rounding);
  }
}

TEST_P(EmbeddingTest, MasksOfOtherKeysPositionsAndSequencesDiffer) {
  const int64_t hidden = 256;
  const Values ones(hidden, 1.0);
  Dropout first = dropout(0.5, {1});
  const Values mask = forward(ones, 1, {0}, hidden, first);
  const Buffer other = make_key(GetParam(), kDropoutKey + 1);
  first.key = other.view();
  const Values other_key = forward(ones, 1, {0}, hidden, first);
  const Values two_tokens = forward(ones, 1, {0, 0}, hidden, dropout(0.5, {2}));
  const Values two_sequences = forward(ones, 1, {0, 0}, hidden, dropout(0.5, {1, 1}));
  EXPECT_NE(mask, other_key);
  EXPECT_EQ(mask, Values(two_tokens.begin(), two_tokens.begin() + hidden));
  EXPECT_NE(mask, Values(two_tokens.begin() + hidden, two_tokens.end()));
  EXPECT_NE(mask, Values(two_sequences.begin() + hidden, two_sequences.end()));
  EXPECT_NE(two_tokens, two_sequences);
}

TEST_P(EmbeddingTest, ShardsOfTheTableAddUpToTheWhole) {
  const int64_t n = 500, vocab = 23, hidden = 136;
  const Dropout some = dropout(0.3, {500});
  const Indices tokens = some_tokens(n, vocab);
  const Values table = random_values(vocab * hidden, 1), grad_out = random_values(n * hidden, 2);
  const Values before = random_values(vocab * hidden, 3);
  Values sum(n * hidden, 0.0), grads;
  int64_t first = 0;
  for (int64_t rows : {0, 9, 1, 13}) {
    const auto of_shard = [&](const Values& x) {
      return Values(x.begin() + first * hidden, x.begin() + (first + rows) * hidden);
    };
    const Values out = forward(of_shard(table), rows, tokens, hidden, some, first);
    for (int64_t t = 0; t < n; ++t) {
      const bool is_here = first <= tokens[t] && tokens[t] < first + rows;
      for (int64_t i = t * hidden; i < (t + 1) * hidden; ++i) {
        sum[i] += out[i];
        ASSERT_TRUE(is_here || out[i] == 0) << t;
      }
    }
    const Values grad = backward(of_shard(before), rows, tokens, grad_out, hidden, some, first);
    grads.insert(grads.end(), grad.begin(), grad.end());
    first += rows;
  }
  EXPECT_EQ(sum, forward(table, vocab, tokens, hidden, some));
  EXPECT_EQ(grads, backward(before, vocab, tokens, grad_out, hidden, some));
}

TEST_P(EmbeddingTest, ForwardHasNoNegativeZeros) {
  const int64_t hidden = 200;
  const Dropout half = dropout(0.5, {3});
  Values table(2 * hidden, -1.0);
  std::fill(table.begin() + hidden, table.end(), -0.0);
  for (const Dropout& some : {Dropout{}, half}) {
    int64_t num_zeros = 0;
    for (double value : forward(table, 2, {5, 6, 7}, hidden, some, 5)) {
      EXPECT_FALSE(value == 0 && std::signbit(value));
      num_zeros += value == 0;
    }
    EXPECT_GE(num_zeros, 2 * hidden);
  }
}

TEST_P(EmbeddingTest, TakesNoTokens) {
  EXPECT_TRUE(forward({1, 2}, 1, {}, 2, {}).empty());
  EXPECT_TRUE(forward({1, 2}, 1, {}, 2, dropout(0.5, {})).empty());
  EXPECT_EQ(backward({1, 2}, 1, {}, {}, 2, {}), (Values{1, 2}));
}

TEST_P(EmbeddingTest, GivesTheSameBitsEveryTime) {
  const int64_t n = 3001, vocab = 23, hidden = 264;
  const Dropout some = dropout(0.2, {3000, 1});
  const Indices tokens = some_tokens(n, vocab);
  const Values before = random_values(vocab * hidden, 1), grad_out = random_values(n * hidden, 2);
  EXPECT_EQ(backward(before, vocab, tokens, grad_out, hidden, some),
            backward(before, vocab, tokens, grad_out, hidden, some));
}

TEST_P(EmbeddingTest, DoesNotDependOnTheNumberOfThreads) {
  if (GetParam().device != Device::kCpu) GTEST_SKIP() << "CPU only";
  const int64_t n = 701, vocab = 23, hidden = 131;
  const Dropout some = dropout(0.2, {700, 1});
  const Indices tokens = some_tokens(n, vocab);
  const Values table = random_values(vocab * hidden, 1), grad_out = random_values(n * hidden, 2);
  expect_same_for_any_number_of_threads(
      [&] { return forward(table, vocab, tokens, hidden, some); });
  expect_same_for_any_number_of_threads(
      [&] { return backward(table, vocab, tokens, grad_out, hidden, some); });
}

TEST_P(EmbeddingTest, GatherRowsTakesRowsOfAnyRank) {
  const Values x = random_values(5 * 2 * 3, 1);
  const Buffer out = empty_tensor(GetParam(), {4, 2, 3});
  gather_rows(out.view(), make_tensor(GetParam(), {5, 2, 3}, x).view(),
              make_int_tensor(GetParam(), {4, 0, 0, 2}).view(), stream_);
  Values expected;
  for (int row : {4, 0, 0, 2}) expected.insert(expected.end(), &x[row * 6], &x[row * 6] + 6);
  EXPECT_EQ(to_doubles(out.view()), expected);
}

TEST_P(EmbeddingTest, GatherRowsTakesScalarsNothingAndManyRows) {
  const Buffer scalars = empty_tensor(GetParam(), {2}), nothing = empty_tensor(GetParam(), {0, 3});
  gather_rows(scalars.view(), make_tensor(GetParam(), {3}, {7, 8, 9}).view(),
              make_int_tensor(GetParam(), {2, 1}).view(), stream_);
  EXPECT_EQ(to_doubles(scalars.view()), (Values{9, 8}));
  gather_rows(nothing.view(), make_tensor(GetParam(), {0, 3}, {}).view(),
              make_int_tensor(GetParam(), {}).view(), stream_);
  for (int64_t width : {77, 80}) {
    const Values table = random_values(50 * width, 1);
    const Indices rows = some_tokens(2000, 50);
    const Buffer many = empty_tensor(GetParam(), {2000, width});
    gather_rows(many.view(), make_tensor(GetParam(), {50, width}, table).view(),
                make_int_tensor(GetParam(), rows).view(), stream_);
    EXPECT_EQ(to_doubles(many.view()), oracle_forward(table, rows, width, {}));
  }
}

TEST_P(EmbeddingTest, RefusesOperandsThatDisagree) {
  const Backend& backend = GetParam();
  const Buffer table = make_tensor(backend, {3, 4}, Values(12, 0.0));
  const Buffer out = make_tensor(backend, {2, 4}, Values(8, 0.0));
  const Buffer grad_table = make_wide_tensor(backend, {3, 4}, Values(12, 0.0));
  const Buffer tokens = make_int_tensor(backend, {0, 2});
  const TensorView t = table.view(), y = out.view(), i = tokens.view(), dt = grad_table.view();
  expect_error("table has shape [12], wanted",
               [&] { embedding_forward(y, i, t.reshaped({12}), 0, {}, stream_); });
  expect_error("out has shape [8], wanted",
               [&] { embedding_forward(y.reshaped({8}), i, t, 0, {}, stream_); });
  expect_error("out has shape [1, 8], wanted [1, 4]", [&] {
    embedding_forward(y.reshaped({1, 8}), i, t, 0, {}, stream_);
  });
  expect_error("tokens has shape [1], wanted [2]",
               [&] { embedding_forward(y, i.rows(0, 1), t, 0, {}, stream_); });
  expect_error("grad_table has shape [12], wanted",
               [&] { embedding_backward(dt.reshaped({12}), y, i, 0, {}, stream_); });
  expect_error("grad_out has shape [8], wanted",
               [&] { embedding_backward(dt, y.reshaped({8}), i, 0, {}, stream_); });
  expect_error("tokens has shape [1], wanted [2]",
               [&] { embedding_backward(dt, y, i.rows(0, 1), 0, {}, stream_); });
  expect_error("out has shape [4, 2], wanted rows of x, of shape [3, 4]", [&] {
    gather_rows(y.reshaped({4, 2}), t, i, stream_);
  });
  expect_error("out has shape [8], wanted rows of x",
               [&] { gather_rows(y.reshaped({8}), t, i, stream_); });
  expect_error("indices has shape [1], wanted [2]",
               [&] { gather_rows(y, t, i.rows(0, 1), stream_); });
}

TEST_P(EmbeddingTest, RefusesIndicesOutOfRange) {
  const Backend& backend = GetParam();
  if (backend.device != Device::kCpu) GTEST_SKIP() << "CPU only";
  const Buffer table = make_tensor(backend, {3, 4}, Values(12, 0.0));
  const Buffer out = make_tensor(backend, {2, 4}, Values(8, 0.0));
  const Buffer grad_table = make_wide_tensor(backend, {3, 4}, Values(12, 0.0));
  const Buffer high = make_int_tensor(backend, {2, 3}), low = make_int_tensor(backend, {-1, 0});
  expect_error("tokens[0] is -1, wanted 0 .. ",
               [&] { embedding_forward(out.view(), low.view(), table.view(), 0, {}, stream_); });
  expect_error("tokens[0] is -1, wanted 0 .. ", [&] {
    embedding_backward(grad_table.view(), out.view(), low.view(), 1, {}, stream_);
  });
  expect_error("tokens[1] is 3, wanted 0 .. 2", [&] { check_tokens(high.view(), 3); });
  expect_error("tokens[0] is -1, wanted 0 .. 2", [&] { check_tokens(low.view(), 3); });
  expect_error("wanted a int32 tensor", [&] { check_tokens(out.view(), 3); });
  check_tokens(high.view(), 4);
  check_tokens(high.view().rows(0, 0), 0);
  expect_error("indices[1] is 3, wanted 0 .. 2",
               [&] { gather_rows(out.view(), table.view(), high.view(), stream_); });
}

TEST_P(EmbeddingTest, RefusesBadDropout) {
  const Buffer table = make_tensor(GetParam(), {3, 4}, Values(12, 0.0));
  const Buffer out = make_tensor(GetParam(), {2, 4}, Values(8, 0.0));
  const Buffer tokens = make_int_tensor(GetParam(), {0, 2});
  const auto run = [&](const Dropout& some) {
    embedding_forward(out.view(), tokens.view(), table.view(), 0, some, stream_);
  };
  const Dropout good = dropout(0.5, {2});
  run(good);
  for (double rate : {-0.1, 1.0, std::nan("")}) {
    Dropout bad = good;
    bad.rate = rate;
    expect_error("a dropout rate is in [0, 1)", [&] { run(bad); });
  }
  Dropout short_ids = good, no_positions = good, wrong_type = good, no_key = good;
  short_ids.sequence_ids = good.sequence_ids.rows(0, 1);
  const std::string wanted =
      std::string("the sequence ID and position of 2 tokens on ") + to_string(GetParam().device);
  expect_error(wanted + ", got [1]", [&] { run(short_ids); });
  no_positions.positions = {};
  expect_error(wanted + ", got []", [&] { run(no_positions); });
  wrong_type.positions = out.view().reshaped({8}).rows(0, 2);
  expect_error("wanted a int32 tensor", [&] { run(wrong_type); });
  no_key.key = {};
  expect_error("dropout needs a key of shape [1]", [&] { run(no_key); });
}

MIRABELLE_INSTANTIATE_BACKENDS(EmbeddingTest);

}  // namespace
}  // namespace mirabelle::testing
