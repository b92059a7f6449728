#include "mirabelle/kernels/cross_entropy.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "support/backends.h"
#include "support/errors.h"
#include "support/threads.h"

namespace mirabelle::testing {
namespace {

using Values = std::vector<double>;
using Indices = std::vector<int32_t>;

/// log softmax of each row, in long double.
Values oracle_log_softmax(const Values& logits, int64_t vocab_size) {
  Values result(logits.size());
  for (size_t first = 0; first < logits.size(); first += vocab_size) {
    long double largest = logits[first];
    for (int64_t i = 0; i < vocab_size; ++i) {
      largest = std::max(largest, static_cast<long double>(logits[first + i]));
    }
    long double sum = 0;
    for (int64_t i = 0; i < vocab_size; ++i) sum += std::exp(logits[first + i] - largest);
    for (int64_t i = 0; i < vocab_size; ++i) {
      result[first + i] = static_cast<double>(logits[first + i] - largest - std::log(sum));
    }
  }
  return result;
}

Values oracle_loss(const Values& logits, const Indices& targets, int64_t vocab_size) {
  const Values log_softmax = oracle_log_softmax(logits, vocab_size);
  Values loss;
  for (size_t t = 0; t < targets.size(); ++t) {
    loss.push_back(targets[t] < 0 ? 0 : -log_softmax[t * vocab_size + targets[t]]);
  }
  return loss;
}

Indices some_targets(int64_t n, int64_t vocab_size) {
  Random random(random_key(5, "targets"));
  Indices targets(n);
  for (int32_t& target : targets) target = static_cast<int32_t>(random.below(vocab_size + 1)) - 1;
  return targets;
}

/// CrossEntropyOptions on the host.
struct Options {
  Values row_weights;  // empty: absent
  double label_smoothing = 0;
  Indices level_bounds;
};

class CrossEntropyTest : public BackendTest {
 protected:
  struct Result {
    Values loss, grad;
  };
  /// The same on the backend.
  struct DeviceOptions {
    explicit DeviceOptions(const Options& options)
        : weights(make_wide_tensor(GetParam(), {static_cast<int64_t>(options.row_weights.size())},
                                   options.row_weights)),
          bounds(make_int_tensor(GetParam(), options.level_bounds)),
          view{options.row_weights.empty() ? TensorView{} : weights.view(), options.label_smoothing,
               bounds.view()} {}
    Buffer weights, bounds;
    CrossEntropyOptions view;
  };
  Result run(const Values& logits, const Indices& targets, int64_t vocab_size, double grad_scale,
             const Options& options = {}) {
    const int64_t n = static_cast<int64_t>(targets.size());
    Buffer x = make_tensor(GetParam(), {n, vocab_size}, logits);
    Buffer loss = make_wide_tensor(GetParam(), {n}, Values(n, 99.0));
    softmax_cross_entropy(loss.view(), x.view(), make_int_tensor(GetParam(), targets).view(),
                          make_scale(grad_scale).view(), DeviceOptions(options).view, stream_);
    return {to_doubles(loss.view()), to_doubles(x.view())};
  }
  /// The same from shards of these sizes: each its maximum, then its sums, then its gradient.
  Result run_shards(const Values& logits, const Indices& targets, const std::vector<int64_t>& sizes,
                    double grad_scale, const Options& options = {}) {
    const DeviceOptions on_backend(options);
    const int64_t n = static_cast<int64_t>(targets.size());
    const int64_t vocab_size = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
    const Buffer on_device = make_int_tensor(GetParam(), targets), scale = make_scale(grad_scale);
    std::vector<Buffer> shards;
    Values sums(2 * n, 0.0);
    const Buffer all_largest = make_wide_tensor(GetParam(), {n}, Values(n, 99.0));
    int64_t first = 0;
    for (int64_t size : sizes) {
      Values columns;
      for (int64_t t = 0; t < n; ++t) {
        const auto row = logits.begin() + t * vocab_size + first;
        columns.insert(columns.end(), row, row + size);
      }
      first += size;
      shards.push_back(make_tensor(GetParam(), {n, size}, columns));
      shard_maximum(all_largest.view(), shards.back().view(),
                    shards.size() > 1 ? Accumulate::kYes : Accumulate::kNo, stream_);
    }
    first = 0;
    for (const Buffer& shard : shards) {
      const Buffer of_shard = make_wide_tensor(GetParam(), {2, n}, Values(2 * n, 99.0));
      shard_sums(of_shard.view(), shard.view(), all_largest.view(), on_device.view(), first,
                 stream_);
      first += shard.view().shape[1];
      const Values values = to_doubles(of_shard.view());
      for (int64_t i = 0; i < 2 * n; ++i) sums[i] += values[i];
    }
    const Buffer all_sums = make_wide_tensor(GetParam(), {2, n}, sums);
    Result result{{}, Values(n * vocab_size)};
    first = 0;
    for (const Buffer& shard : shards) {
      const Buffer loss = make_wide_tensor(GetParam(), {n}, Values(n, 99.0));
      shard_gradient(loss.view(), shard.view(), all_largest.view(), all_sums.view(),
                     on_device.view(), first, scale.view(), on_backend.view, stream_);
      const Values of_shard = to_doubles(loss.view());
      if (first == 0) result.loss = of_shard;
      EXPECT_TRUE(std::equal(of_shard.begin(), of_shard.end(), result.loss.begin(),
                             [](double x, double y) { return x == y || (x != x && y != y); }));
      const Values grad = to_doubles(shard.view());
      const int64_t size = shard.view().shape[1];
      for (int64_t t = 0; t < n; ++t) {
        std::copy_n(grad.begin() + t * size, size, result.grad.begin() + t * vocab_size + first);
      }
      first += size;
    }
    return result;
  }
  static Buffer make_scale(double value) {
    return make_tensor(GetParam().device, DType::kFloat64, {1}, {value});
  }
  /// Losses are computed in the wide dtype.
  static double loss_tolerance() {
    return GetParam().dtype == DType::kBFloat16 ? 1e-5 : GetParam().tolerance;
  }
  Values run_log_softmax(const Values& logits, int64_t vocab_size) {
    const int64_t n = static_cast<int64_t>(logits.size()) / vocab_size;
    Buffer x = make_tensor(GetParam(), {n, vocab_size}, logits);
    log_softmax(x.view(), stream_);
    return to_doubles(x.view());
  }
};

TEST_P(CrossEntropyTest, LossFollowsTheFormula) {
  for (const auto& [n, vocab] :
       {std::array<int64_t, 2>{1, 1}, {7, 5}, {3, 16}, {33, 1031}, {5, 4104}}) {
    const Values logits = random_values(n * vocab, 1, 3);
    const Indices targets = some_targets(n, vocab);
    expect_near(run(logits, targets, vocab, 1).loss, oracle_loss(logits, targets, vocab),
                2 * loss_tolerance(), "loss");
  }
}

TEST_P(CrossEntropyTest, GradientMatchesFiniteDifferences) {
  const Indices targets = {3, 0, -1, 6};
  const Values logits = random_values(4 * 7, 1, 2);
  const Values expected = finite_differences(
      [&](const Values& x) { return dot(oracle_loss(x, targets, 7), Values(4, 0.25)); }, logits);
  expect_near(run(logits, targets, 7, 0.25).grad, expected, 2 * GetParam().tolerance + 1e-9,
              "grad_logits");
}

TEST_P(CrossEntropyTest, GradientIsScaledSoftmaxMinusOneHotForLargeVocabularies) {
  for (int64_t vocab : {2053, 4104}) {
    const Values logits = random_values(9 * vocab, 1, 5);
    const Indices targets = some_targets(9, vocab);
    Values expected = oracle_log_softmax(logits, vocab);
    for (int64_t t = 0; t < 9; ++t) {
      for (int64_t i = 0; i < vocab; ++i) {
        double& value = expected[t * vocab + i];
        value = targets[t] < 0 ? 0 : 3 * (std::exp(value) - (i == targets[t]));
      }
    }
    expect_near(run(logits, targets, vocab, 3).grad, expected, 2 * GetParam().tolerance, "grad");
  }
}

TEST_P(CrossEntropyTest, NegativeTargetsGiveNeitherLossNorGradient) {
  const Result result = run(random_values(2 * 37, 1), {-1, -100}, 37, 1);
  EXPECT_EQ(result.loss, Values(2, 0.0));
  EXPECT_EQ(result.grad, Values(2 * 37, 0.0));
}

TEST_P(CrossEntropyTest, HugeLogitsNeitherOverflowNorLoseTheLoss) {
  // both numbers of the dtype
  const double large = GetParam().dtype == DType::kBFloat16 ? 2048 : 1e4;
  const double below = GetParam().dtype == DType::kBFloat16 ? 2040 : 9990;
  const Values logits = {large, -1e4, below, 0, 1e30, 1e30, -1e30, 0};
  const Result result = run(logits, {2, 1}, 4, 1);
  expect_near(result.loss, {large - below + std::log1p(std::exp(below - large)), std::log(2)},
              loss_tolerance(), "loss");
  const double p = 1 / (1 + std::exp(large - below));
  expect_near(result.grad, {1 - p, 0, p - 1, 0, 0.5, -0.5, 0, 0}, GetParam().tolerance, "grad");
}

TEST_P(CrossEntropyTest, TheSmallGradientOfASureTargetIsRoundedOnlyOnce) {
  // A probability of 0.987 would be 0.984 or 0.988 in bfloat16, and the gradient 20 % off.
  const double p = 1 / (1 + 2 * std::exp(-5));
  const Result result = run({5, 0, 0}, {0}, 3, 1);
  EXPECT_NEAR(result.grad[0] / (p - 1), 1, std::max(GetParam().tolerance, 1e-5));
}

TEST_P(CrossEntropyTest, MinusInfinityIsAProbabilityOfZero) {
  const double infinity = std::numeric_limits<double>::infinity();
  const Result result = run({0, -infinity, 0}, {0}, 3, 1);
  expect_near(result.loss, {std::log(2)}, loss_tolerance(), "loss");
  expect_near(result.grad, {-0.5, 0, 0.5}, GetParam().tolerance, "grad");
  const Values log_probabilities = run_log_softmax({0, -infinity, 0}, 3);
  EXPECT_EQ(log_probabilities[1], -infinity);
  EXPECT_NEAR(log_probabilities[0], -std::log(2), GetParam().tolerance);
}

TEST_P(CrossEntropyTest, NaNLogitsAreNotHidden) {
  for (int64_t place : {0, 11, 40}) {  // 40: the last, and alone in its vector
    Values logits(41, 0.0);
    logits[place] = std::nan("");
    EXPECT_TRUE(std::isnan(run(logits, {3}, 41, 1).loss[0])) << place;
  }
  Values logits(41, 0.0);
  std::fill(logits.begin() + 8, logits.begin() + 16, std::nan(""));
  EXPECT_TRUE(std::isnan(run(logits, {3}, 41, 1).loss[0]));
}

TEST_P(CrossEntropyTest, TakesNoTokens) { EXPECT_TRUE(run({}, {}, 5, 1).loss.empty()); }

TEST_P(CrossEntropyTest, ShardsGiveTheLossAndGradientOfTheWhole) {
  const std::vector<std::vector<int64_t>> cuts = {
      {1}, {0, 5}, {1, 0, 2, 2}, {16, 8, 8}, {700, 331}, {2048, 2056}, {1, 4103}};
  for (const std::vector<int64_t>& sizes : cuts) {
    const int64_t vocab = std::accumulate(sizes.begin(), sizes.end(), int64_t{0}), n = 33;
    const Values logits = random_values(n * vocab, 1, 3);
    const Indices targets = some_targets(n, vocab);
    Values grad = oracle_log_softmax(logits, vocab);
    for (int64_t i = 0; i < n * vocab; ++i) {
      const int32_t target = targets[i / vocab];
      grad[i] = target < 0 ? 0 : 3 * (std::exp(grad[i]) - (i % vocab == target));
    }
    const Result result = run_shards(logits, targets, sizes, 3);
    expect_near(result.loss, oracle_loss(logits, targets, vocab), 2 * loss_tolerance(), "loss");
    expect_near(result.grad, grad, 2 * GetParam().tolerance, "grad");
  }
}

TEST_P(CrossEntropyTest, ShardsTakeNoTokens) {
  EXPECT_TRUE(run_shards({}, {}, {2, 3}, 1).loss.empty());
}

TEST_P(CrossEntropyTest, ShardsWithoutTokensHaveNeitherMaximumNorSums) {
  const Buffer largest = make_wide_tensor(GetParam(), {2}, {99, 99});
  const Buffer sums = make_wide_tensor(GetParam(), {2, 2}, {99, 99, 99, 99});
  const Buffer loss = make_wide_tensor(GetParam(), {2}, {99, 99});
  const Buffer targets = make_int_tensor(GetParam(), {3, -1}), scale = make_scale(1);
  const TensorView none{nullptr, {2, 0}, GetParam().dtype, GetParam().device};
  const double infinity = std::numeric_limits<double>::infinity();
  shard_maximum(largest.view(), none, Accumulate::kNo, stream_);
  EXPECT_EQ(to_doubles(largest.view()), Values(2, -infinity));
  const Buffer of_all = make_wide_tensor(GetParam(), {2}, {5, 5});
  shard_sums(sums.view(), none, of_all.view(), targets.view(), 3, stream_);
  EXPECT_EQ(to_doubles(sums.view()), Values(4, 0.0));
  const Buffer all_sums = make_wide_tensor(GetParam(), {2, 2}, {1, 1, -2, 0});
  shard_gradient(loss.view(), none, of_all.view(), all_sums.view(), targets.view(), 3, scale.view(),
                 {}, stream_);
  EXPECT_EQ(to_doubles(loss.view()), (Values{2, 0}));
}

TEST_P(CrossEntropyTest, ShardsOfHugeLogitsNeitherOverflowNorLoseTheLoss) {
  const Values logits = {1e30, 1e30, -1e30, 0, 0, 5, 0, 0};
  const Result result = run_shards(logits, {1, 1}, {2, 1, 1}, 1);
  const double p = std::exp(5) / (std::exp(5) + 3);
  expect_near(result.loss, {std::log(2), -std::log(p)}, loss_tolerance(), "loss");
  const double q = (1 - p) / 3;
  expect_near(result.grad, {0.5, -0.5, 0, 0, q, p - 1, q, q}, GetParam().tolerance, "grad");
  EXPECT_NEAR(result.grad[5] / (p - 1), 1, std::max(GetParam().tolerance, 1e-5));  // rounded once
}

TEST_P(CrossEntropyTest, ShardsPassMinusInfinityAndNaNOn) {
  const double infinity = std::numeric_limits<double>::infinity();
  const Result result = run_shards({0, -infinity, -infinity, 0}, {0}, {1, 1, 1, 1}, 1);
  expect_near(result.loss, {std::log(2)}, loss_tolerance(), "loss");
  expect_near(result.grad, {-0.5, 0, 0, 0.5}, GetParam().tolerance, "grad");
  EXPECT_TRUE(std::isnan(run_shards({0, 1, 2, std::nan("")}, {0}, {2, 2}, 1).loss[0]));
}

TEST_P(CrossEntropyTest, ShardsRefuseOperandsThatDisagree) {
  const Buffer logits = make_tensor(GetParam(), {2, 3}, Values(6, 0.0));
  const Buffer of_rows = make_wide_tensor(GetParam(), {2}, Values(2, 0.0));
  const Buffer sums = make_wide_tensor(GetParam(), {2, 2}, Values(4, 0.0));
  const Buffer targets = make_int_tensor(GetParam(), {0, 0}), scale = make_scale(1);
  const TensorView x = logits.view(), rows = of_rows.view(), s = sums.view(), t = targets.view();
  const TensorView one = rows.rows(0, 1), flat = s.reshaped({4});
  const auto gradient = [&](const TensorView& loss, const TensorView& largest,
                            const TensorView& sum, const TensorView& target,
                            const TensorView& factor) {
    shard_gradient(loss, x, largest, sum, target, 0, factor, {}, stream_);
  };
  expect_error("logits have shape [6], wanted",
               [&] { shard_maximum(rows, x.reshaped({6}), Accumulate::kNo, stream_); });
  expect_error("largest has shape [1], wanted [2]",
               [&] { shard_maximum(one, x, Accumulate::kNo, stream_); });
  expect_error("sums has shape [4], wanted [2, 2]",
               [&] { shard_sums(flat, x, rows, t, 0, stream_); });
  expect_error("largest has shape [1], wanted [2]", [&] { shard_sums(s, x, one, t, 0, stream_); });
  expect_error("targets has shape [1], wanted [2]",
               [&] { shard_sums(s, x, rows, t.rows(0, 1), 0, stream_); });
  expect_error("loss has shape [1], wanted [2]", [&] { gradient(one, rows, s, t, scale.view()); });
  expect_error("largest has shape [1], wanted [2]",
               [&] { gradient(rows, one, s, t, scale.view()); });
  expect_error("sums has shape [4], wanted [2, 2]",
               [&] { gradient(rows, rows, flat, t, scale.view()); });
  expect_error("targets is", [&] { gradient(rows, rows, s, rows, scale.view()); });
  expect_error("grad_scale has shape [2]", [&] { gradient(rows, rows, s, t, rows); });
}

TEST_P(CrossEntropyTest, LogSoftmaxFollowsTheFormula) {
  for (const auto& [n, vocab] :
       {std::array<int64_t, 2>{0, 3}, {1, 1}, {7, 5}, {33, 1031}, {5, 4104}}) {
    const Values logits = random_values(n * vocab, 1, 4);
    expect_near(run_log_softmax(logits, vocab), oracle_log_softmax(logits, vocab),
                2 * GetParam().tolerance, "log_softmax");
  }
}

TEST_P(CrossEntropyTest, LogSoftmaxOfShiftedHugeLogitsIsTheSame) {
  // whose neighbours are numbers of the dtype
  const double huge = GetParam().dtype == DType::kBFloat16 ? 128 : 16384;
  const Values result = run_log_softmax({huge, huge + 1, huge - 1}, 3);
  expect_near(result, oracle_log_softmax({0, 1, -1}, 3), GetParam().tolerance, "log_softmax");
}

TEST_P(CrossEntropyTest, GivesTheSameBitsEveryTime) {
  const Values logits = random_values(131 * 3331, 1, 3);
  const Indices targets = some_targets(131, 3331);
  const Result first = run(logits, targets, 3331, 1), second = run(logits, targets, 3331, 1);
  EXPECT_EQ(first.loss, second.loss);
  EXPECT_EQ(first.grad, second.grad);
  EXPECT_EQ(run_log_softmax(logits, 3331), run_log_softmax(logits, 3331));
}

TEST_P(CrossEntropyTest, DoesNotDependOnTheNumberOfThreads) {
  if (GetParam().device != Device::kCpu) GTEST_SKIP() << "CPU only";
  const Values logits = random_values(131 * 331, 1, 3);
  const Indices targets = some_targets(131, 331);
  expect_same_for_any_number_of_threads([&] { return run(logits, targets, 331, 1).loss; });
  expect_same_for_any_number_of_threads([&] { return run(logits, targets, 331, 1).grad; });
  expect_same_for_any_number_of_threads([&] { return run_log_softmax(logits, 331); });
  const std::vector<int64_t> sizes = {131, 200};
  expect_same_for_any_number_of_threads([&] { return run_shards(logits, targets, sizes, 1).loss; });
  expect_same_for_any_number_of_threads([&] { return run_shards(logits, targets, sizes, 1).grad; });
}

TEST_P(CrossEntropyTest, RefusesOperandsThatDisagree) {
  const Buffer logits = make_tensor(GetParam(), {2, 3}, Values(6, 0.0));
  const Buffer loss = make_wide_tensor(GetParam(), {2}, Values(2, 0.0));
  const Buffer scale = make_scale(1);
  const auto entropy = [&](const TensorView& l, const TensorView& x, const Indices& targets) {
    softmax_cross_entropy(l, x, make_int_tensor(GetParam(), targets).view(), scale.view(), {},
                          stream_);
  };
  expect_error("logits have shape [6], wanted", [&] {
    entropy(loss.view(), logits.view().reshaped({6}), {0, 0});
  });
  expect_error("loss has shape [1], wanted [2]", [&] {
    entropy(loss.view().rows(0, 1), logits.view(), {0, 0});
  });
  expect_error("targets has shape [3], wanted [2]", [&] {
    entropy(loss.view(), logits.view(), {0, 0, 0});
  });
  expect_error("targets is", [&] {
    softmax_cross_entropy(loss.view(), logits.view(), loss.view(), scale.view(), {}, stream_);
  });
  const Buffer targets = make_int_tensor(GetParam(), {0, 0});
  expect_error("grad_scale has shape [2]", [&] {
    softmax_cross_entropy(loss.view(), logits.view(), targets.view(), loss.view(), {}, stream_);
  });
  expect_error("logits have shape [6], wanted",
               [&] { log_softmax(logits.view().reshaped({6}), stream_); });
}

TEST_P(CrossEntropyTest, RefusesTargetsOutOfRange) {
  if (GetParam().device != Device::kCpu) GTEST_SKIP() << "CPU only";
  const Buffer logits = make_tensor(GetParam(), {2, 3}, Values(6, 0.0));
  const Buffer loss = make_wide_tensor(GetParam(), {2}, Values(2, 0.0));
  const Buffer targets = make_int_tensor(GetParam(), {-5, 3}), scale = make_scale(1);
  expect_error("targets[1] is 3", [&] {
    softmax_cross_entropy(loss.view(), logits.view(), targets.view(), scale.view(), {}, stream_);
  });
}

// --- weights and label smoothing

/// Cross entropy of the smoothed distribution of each row, times its weight.
Values oracle_objective(const Values& logits, const Indices& targets, int64_t vocab_size,
                        const Values& weights, double smoothing, const Indices& bounds) {
  const Values log_softmax = oracle_log_softmax(logits, vocab_size);
  Values objective;
  for (size_t t = 0; t < targets.size(); ++t) {
    Values distribution(vocab_size, 0.0);
    if (targets[t] >= 0) distribution[targets[t]] = 1;
    for (size_t level = 0; level + 1 < bounds.size(); ++level) {
      if (targets[t] < bounds[level] || targets[t] >= bounds[level + 1]) continue;
      distribution[targets[t]] -= smoothing;
      for (int32_t token = bounds[level]; token < bounds[level + 1]; ++token) {
        distribution[token] += smoothing / (bounds[level + 1] - bounds[level]);
      }
    }
    const Values row(log_softmax.begin() + t * vocab_size,
                     log_softmax.begin() + (t + 1) * vocab_size);
    objective.push_back(-(weights.empty() ? 1 : weights[t]) * dot(distribution, row));
  }
  return objective;
}

TEST_P(CrossEntropyTest, WeightedSmoothedGradientsMatchFiniteDifferences) {
  // tokens 0 and 8 are of no level, the level of 4 has no other
  const Indices targets = {1, 3, -1, 4, 7, 0, 8, 5}, bounds = {1, 4, 5, 8};
  const Values all_weights = {0.5, 2, 7, 1, 0, 3, 1.25, 1};
  const Values logits = random_values(8 * 9, 1, 2);
  for (const double smoothing : {0.0, 0.25, 0.9}) {
    for (const Values& weights : {Values(), all_weights}) {
      const Values expected = finite_differences(
          [&](const Values& x) {
            const Values rows = oracle_objective(x, targets, 9, weights, smoothing, bounds);
            return dot(rows, Values(8, 0.25));
          },
          logits);
      const Options options = {weights, smoothing, bounds};
      const double tolerance = 2 * GetParam().tolerance + 1e-9;
      const Result whole = run(logits, targets, 9, 0.25, options);
      expect_near(whole.grad, expected, tolerance, "grad_logits");
      expect_near(whole.loss, oracle_loss(logits, targets, 9), 2 * loss_tolerance(), "loss");
      for (const std::vector<int64_t>& sizes : std::vector<std::vector<int64_t>>{
               {9}, {2, 7}, {4, 0, 1, 4}, {3, 3, 3}, {1, 1, 1, 1, 1, 1, 1, 1, 1}}) {
        const Result shards = run_shards(logits, targets, sizes, 0.25, options);
        expect_near(shards.grad, expected, tolerance, "grad_logits of shards");
        expect_near(shards.loss, oracle_loss(logits, targets, 9), 2 * loss_tolerance(), "loss");
      }
    }
  }
}

TEST_P(CrossEntropyTest, WeightedSmoothedGradientsOfLargeVocabulariesFollowTheFormula) {
  for (const int32_t vocab : {2053, 4104}) {
    const int64_t n = 17;
    const Values logits = random_values(n * vocab, 1, 5);
    const Indices targets = some_targets(n, vocab), bounds = {1, 600, 1361, vocab};
    const Values weights = random_values(n, 2);
    Values expected = oracle_log_softmax(logits, vocab);
    for (int64_t i = 0; i < n * vocab; ++i) {
      const int32_t target = targets[i / vocab], token = static_cast<int32_t>(i % vocab);
      double wanted = token == target;
      for (size_t level = 0; level < 3 && target > 0; ++level) {
        const int32_t begin = bounds[level], end = bounds[level + 1];
        if (target < begin || target >= end) continue;
        wanted *= 1 - 0.125;
        if (begin <= token && token < end) wanted += 0.125 / (end - begin);
      }
      expected[i] = target < 0 ? 0 : 3 * weights[i / vocab] * (std::exp(expected[i]) - wanted);
    }
    const Options options = {weights, 0.125, bounds};
    expect_near(run(logits, targets, vocab, 3, options).grad, expected, 2 * GetParam().tolerance,
                "grad");
    expect_near(run_shards(logits, targets, {1024, vocab - 1024}, 3, options).grad, expected,
                2 * GetParam().tolerance, "grad of shards");
  }
}

TEST_P(CrossEntropyTest, WeightsOfOneChangeNoBit) {
  const Values logits = random_values(33 * 331, 1, 3);
  const Indices targets = some_targets(33, 331);
  const Options ones = {Values(33, 1.0), 0, {}};
  EXPECT_EQ(run(logits, targets, 331, 3, ones).grad, run(logits, targets, 331, 3).grad);
  EXPECT_EQ(run_shards(logits, targets, {130, 201}, 3, ones).grad,
            run_shards(logits, targets, {130, 201}, 3).grad);
}

TEST_P(CrossEntropyTest, TheSmallGradientOfASureSmoothedTargetIsRoundedOnlyOnce) {
  // Of three tokens of one level: 0.9 + 0.1 / 3 is wanted of the first, and nearly that is given.
  const double p = 1 / (1 + 2 * std::exp(-3.5)), wanted = 0.9 + 0.1 / 3;
  const Options options = {{}, 0.1, {0, 3}};
  const double tolerance = std::max(GetParam().tolerance, 1e-5);
  EXPECT_NEAR(run({3.5, 0, 0}, {0}, 3, 1, options).grad[0] / (p - wanted), 1, tolerance);
  EXPECT_NEAR(run_shards({3.5, 0, 0}, {0}, {1, 2}, 1, options).grad[0] / (p - wanted), 1,
              tolerance);
}

TEST_P(CrossEntropyTest, OptionsAreTheSameForAnyNumberOfThreads) {
  if (GetParam().device != Device::kCpu) GTEST_SKIP() << "CPU only";
  const Values logits = random_values(131 * 331, 1, 3);
  const Indices targets = some_targets(131, 331);
  const Options options = {random_values(131, 2), 0.1, {1, 100, 331}};
  expect_same_for_any_number_of_threads([&] { return run(logits, targets, 331, 1, options).grad; });
  const std::vector<int64_t> sizes = {131, 200};
  expect_same_for_any_number_of_threads(
      [&] { return run_shards(logits, targets, sizes, 1, options).grad; });
}

TEST_P(CrossEntropyTest, RefusesOptionsThatDisagree) {
  const Values logits(6, 0.0);
  const auto refuses = [&](const std::string& message, const Options& options) {
    expect_error(message, [&] { run(logits, {0, 0}, 3, 1, options); });
    expect_error(message, [&] { run_shards(logits, {0, 0}, {1, 2}, 1, options); });
  };
  refuses("row_weights has shape [3], wanted [2]", {{1, 1, 1}, 0, {}});
  refuses("label_smoothing is 1,", {{}, 1, {0, 3}});
  refuses("label_smoothing is -0.5", {{}, -0.5, {0, 3}});
  refuses("level_bounds have shape [1], wanted", {{}, 0.5, {0}});
  if (GetParam().device != Device::kCpu) return;
  const Options beyond = {{}, 0.5, {0, 4}};
  expect_error("level_bounds[1] is 4", [&] { run(logits, {0, 0}, 3, 1, beyond); });
}

MIRABELLE_INSTANTIATE_BACKENDS(CrossEntropyTest);

}  // namespace
}  // namespace mirabelle::testing
