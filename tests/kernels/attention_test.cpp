#include "mirabelle/kernels/attention.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <limits>

#include "support/backends.h"

namespace mirabelle::testing {
namespace {

struct Case {
  std::vector<int64_t> lengths;
  int64_t num_kv_heads = 1, group_size = 1, head_dim = 8;

  std::vector<int32_t> offsets() const {
    std::vector<int32_t> result{0};
    for (int64_t length : lengths) result.push_back(result.back() + static_cast<int32_t>(length));
    return result;
  }
  int64_t num_tokens() const { return offsets().back(); }
  int64_t max_sequence_tokens() const {
    return lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end());
  }
  int64_t num_heads() const { return num_kv_heads * group_size; }
  int64_t qkv_heads() const { return num_heads() + 2 * num_kv_heads; }
  Shape qkv_shape() const { return {num_tokens(), qkv_heads(), head_dim}; }
  Shape out_shape() const { return {num_tokens(), num_heads() * head_dim}; }
  Shape log_sum_shape() const { return {num_tokens(), num_heads()}; }
  /// Where the vector of a token's query, key or value head begins.
  int64_t query(int64_t token, int64_t head) const {
    return (token * qkv_heads() + head) * head_dim;
  }
  int64_t key(int64_t token, int64_t kv_head) const { return query(token, num_heads() + kv_head); }
  int64_t value(int64_t token, int64_t kv_head) const { return key(token, num_kv_heads + kv_head); }
};

/// Mixed lengths: none, one, odd ones, more than one block (128) and exactly one.
const std::vector<int64_t> kLengths = {0, 1, 7, 33, 0, 65, 128, 200, 2};

struct Oracle {
  std::vector<double> out, log_sum, grad_qkv;
};

/// Attention and its gradient from the formulas, one full row of the softmax at a time.
Oracle oracle(const Case& c, const std::vector<double>& qkv, const std::vector<double>& grad_out,
              double scale) {
  const int64_t dim = c.head_dim;
  const std::vector<int32_t> offsets = c.offsets();
  Oracle result{std::vector<double>(c.num_tokens() * c.num_heads() * dim),
                std::vector<double>(c.num_tokens() * c.num_heads()),
                std::vector<double>(qkv.size())};
  auto dot = [&](const double* a, const double* b) {
    double sum = 0;
    for (int64_t d = 0; d < dim; ++d) sum += a[d] * b[d];
    return sum;
  };
  for (size_t s = 0; s < c.lengths.size(); ++s) {
    for (int64_t query = offsets[s]; query < offsets[s + 1]; ++query) {
      for (int64_t head = 0; head < c.num_heads(); ++head) {
        const int64_t kv_head = head / c.group_size;
        const double* q = &qkv[c.query(query, head)];
        std::vector<double> p;
        for (int64_t key = offsets[s]; key <= query; ++key) {
          p.push_back(scale * dot(q, &qkv[c.key(key, kv_head)]));
        }
        const double largest = *std::max_element(p.begin(), p.end());
        double sum = 0;
        for (double score : p) sum += std::exp(score - largest);
        const double log_sum = largest + std::log(sum);
        const int64_t row = query * c.num_heads() + head;
        result.log_sum[row] = log_sum;
        double* out = &result.out[row * dim];
        const double* dout = grad_out.empty() ? nullptr : &grad_out[row * dim];
        std::vector<double> dp;
        for (size_t j = 0; j < p.size(); ++j) {
          const double* v = &qkv[c.value(offsets[s] + j, kv_head)];
          p[j] = std::exp(p[j] - log_sum);
          for (int64_t d = 0; d < dim; ++d) out[d] += p[j] * v[d];
          if (dout) dp.push_back(dot(dout, v));
        }
        if (!dout) continue;
        double mean = 0;
        for (size_t j = 0; j < p.size(); ++j) mean += p[j] * dp[j];
        for (size_t j = 0; j < p.size(); ++j) {
          const int64_t key = c.key(offsets[s] + j, kv_head);
          const int64_t value = c.value(offsets[s] + j, kv_head);
          const double ds = p[j] * (dp[j] - mean) * scale;
          for (int64_t d = 0; d < dim; ++d) {
            result.grad_qkv[c.query(query, head) + d] += ds * qkv[key + d];
            result.grad_qkv[key + d] += ds * q[d];
            result.grad_qkv[value + d] += p[j] * dout[d];
          }
        }
      }
    }
  }
  return result;
}

struct Results {
  Buffer out, log_sum, grad_qkv;
};

/// Both passes of the library; the outputs hold NaN before, so that what is not written shows.
Results run(const Backend& backend, const Stream& stream, const Case& c,
            const std::vector<double>& qkv, const std::vector<double>& grad_out, double scale) {
  const auto nans = [](const Shape& shape) {
    return std::vector<double>(shape.num_elements(), NAN);
  };
  Results result{make_tensor(backend, c.out_shape(), nans(c.out_shape())),
                 make_wide_tensor(backend, c.log_sum_shape(), nans(c.log_sum_shape())),
                 make_tensor(backend, c.qkv_shape(), nans(c.qkv_shape()))};
  const Buffer input = make_tensor(backend, c.qkv_shape(), qkv);
  const Buffer offsets = make_int_tensor(backend, c.offsets());
  attention_forward(result.out.view(), result.log_sum.view(), input.view(), offsets.view(),
                    c.max_sequence_tokens(), scale, stream);
  if (grad_out.empty()) return result;
  const Buffer grad = make_tensor(backend, c.out_shape(), grad_out);
  attention_backward(result.grad_qkv.view(), grad.view(), result.out.view(), result.log_sum.view(),
                     input.view(), offsets.view(), c.max_sequence_tokens(), scale, stream);
  return result;
}

/// In bfloat16 all arithmetic is float32's, and the result is rounded once.
double out_tolerance(const Backend& backend) {
  return (backend.dtype == DType::kBFloat16 ? 1 : 5) * backend.tolerance;
}

void expect_both_passes_match(const Backend& backend, const Stream& stream, const Case& c) {
  SCOPED_TRACE(::testing::Message() << c.num_kv_heads << " kv heads, groups of " << c.group_size
                                    << ", head_dim " << c.head_dim);
  const auto qkv = random_values(c.qkv_shape().num_elements(), 1);
  const auto grad_out = random_values(c.out_shape().num_elements(), 2);
  const double scale = 1 / std::sqrt(c.head_dim);
  const Oracle expected = oracle(c, qkv, grad_out, scale);
  const Results actual = run(backend, stream, c, qkv, grad_out, scale);
  const double log_sum_tolerance =
      wide(backend.dtype) == DType::kFloat32 ? 5e-5 : 5 * backend.tolerance;
  expect_near(to_doubles(actual.out.view()), expected.out, out_tolerance(backend), "out");
  expect_near(to_doubles(actual.log_sum.view()), expected.log_sum, log_sum_tolerance, "log_sum");
  // in bfloat16 it errs by the rounding of `out`, which goes into it, too
  expect_near(to_doubles(actual.grad_qkv.view()), expected.grad_qkv, 5 * backend.tolerance,
              "grad_qkv");
}

class AttentionTest : public BackendTest {};
MIRABELLE_INSTANTIATE_BACKENDS(AttentionTest);
#ifdef MIRABELLE_CUDA
/// Where results need not repeat there are other kernels, which are held to the same oracle.
INSTANTIATE_TEST_SUITE_P(NotReproducible, AttentionTest,
                         ::testing::Values(Backend{Device::kCuda, DType::kBFloat16, 1e-2, false}),
                         backend_name);
#endif

TEST_P(AttentionTest, MatchesTheFormulasForPackedSequences) {
  expect_both_passes_match(GetParam(), stream_, {kLengths, 2, 1, 32});
}

TEST_P(AttentionTest, MatchesTheFormulasForGroupsOfQueryHeads) {
  for (int64_t group_size : {2, 4, 7}) {
    expect_both_passes_match(GetParam(), stream_, {{0, 1, 7, 33, 150}, 2, group_size, 8});
  }
}

TEST_P(AttentionTest, MatchesTheFormulasForEveryWidthOfTiles) {
  for (int64_t head_dim : {1, 2, 5, 8, 16, 17, 32, 48, 50, 64, 80, 96, 100, 128, 200, 256}) {
    expect_both_passes_match(GetParam(), stream_, {{5, 0, 35, 130}, 1, 2, head_dim});
  }
}

TEST_P(AttentionTest, MatchesTheFormulasAroundTheBlockSizes) {
  for (int64_t length :
       {3, 4, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 160, 255, 256, 257}) {
    expect_both_passes_match(GetParam(), stream_, {{length}, 1, 1, 16});
  }
}

TEST_P(AttentionTest, MatchesTheFormulasForALongSequence) {
  expect_both_passes_match(GetParam(), stream_, {{1000}, 1, 1, 64});
}

TEST_P(AttentionTest, MatchesTheFormulasForSequencesOfSimilarLength) {
  const std::vector<int64_t> lengths = {200, 0, 256, 131, 250, 190};
  for (int64_t head_dim : {32, 48, 64, 128}) {
    for (int64_t group_size : {1, 3}) {
      expect_both_passes_match(GetParam(), stream_, {lengths, 2, group_size, head_dim});
    }
  }
}

TEST_P(AttentionTest, DoesNothingWithoutTokens) {
  for (const auto& lengths : {std::vector<int64_t>{}, {0}, {0, 0, 0}}) {
    const Results results = run(GetParam(), stream_, {lengths, 2, 2, 8}, {}, {}, 1.0);
    EXPECT_EQ(results.out.view().num_elements(), 0);
    expect_both_passes_match(GetParam(), stream_, {lengths, 2, 2, 8});
  }
}

TEST_P(AttentionTest, OutputOfTheFirstTokenIsItsValue) {
  const Case c{{1, 4}, 1, 1, 2};
  const auto qkv = random_values(c.qkv_shape().num_elements(), 3);
  const auto out = to_doubles(run(GetParam(), stream_, c, qkv, {}, 100).out.view());
  for (int64_t token : {0, 1}) {
    for (int64_t d : {0, 1}) EXPECT_EQ(out[token * 2 + d], qkv[c.value(token, 0) + d]);
  }
}

TEST_P(AttentionTest, LaterTokensAndOtherSequencesDoNotMatter) {
  const Case c{{40, 50}, 1, 2, 16};
  auto qkv = random_values(c.qkv_shape().num_elements(), 4);
  const auto before = to_doubles(run(GetParam(), stream_, c, qkv, {}, 0.25).out.view());
  for (int64_t i = c.query(20, 0); i < c.query(40, 0); ++i) qkv[i] = 1e3;
  const auto after = to_doubles(run(GetParam(), stream_, c, qkv, {}, 0.25).out.view());
  const int64_t width = c.num_heads() * c.head_dim;
  for (int64_t i = 0; i < c.num_tokens() * width; ++i) {
    if (i / width < 20 || i / width >= 40) {
      ASSERT_EQ(before[i], after[i]) << "token " << i / width;
    } else if (i / width > 20) {
      ASSERT_NE(before[i], after[i]) << "token " << i / width;
    }
  }
}

TEST_P(AttentionTest, SequenceHasTheSameBitsInAnyCompany) {
  if (!GetParam().reproducible) GTEST_SKIP() << "not promised";
  const Case together{{60, 140, 9}, 2, 2, 16}, alone{{140}, 2, 2, 16};
  const auto qkv = random_values(together.qkv_shape().num_elements(), 5);
  const auto grad_out = random_values(together.out_shape().num_elements(), 6);
  const int64_t in = together.query(60, 0), out = 60 * together.num_heads() * together.head_dim;
  const Results all = run(GetParam(), stream_, together, qkv, grad_out, 0.25);
  const Results one = run(GetParam(), stream_, alone, {qkv.begin() + in, qkv.end()},
                          {grad_out.begin() + out, grad_out.end()}, 0.25);
  const auto all_out = to_doubles(all.out.view()), one_out = to_doubles(one.out.view());
  EXPECT_TRUE(std::equal(one_out.begin(), one_out.end(), all_out.begin() + out));
  const auto all_grad = to_doubles(all.grad_qkv.view()), one_grad = to_doubles(one.grad_qkv.view());
  EXPECT_TRUE(std::equal(one_grad.begin(), one_grad.end(), all_grad.begin() + in));
}

TEST_P(AttentionTest, HugeScoresNeitherOverflowNorLoseTheSoftmax) {
  // Queries and keys of +-100 in 8 features and a scale of 1: scores between -8e4 and 8e4, nearly
  // all of the weight on one key (or equally on several).
  const Case c{{50, 140}, 1, 1, 8};
  auto qkv = random_values(c.qkv_shape().num_elements(), 7);
  for (int64_t token = 0; token < c.num_tokens(); ++token) {
    for (int64_t d = c.query(token, 0); d < c.value(token, 0); ++d) {
      double& x = qkv[d];
      x = x < 0 ? -100 : 100;
    }
  }
  const auto grad_out = random_values(c.out_shape().num_elements(), 8);
  const Oracle expected = oracle(c, qkv, grad_out, 1.0);
  const Results actual = run(GetParam(), stream_, c, qkv, grad_out, 1.0);
  expect_near(to_doubles(actual.out.view()), expected.out, 10 * GetParam().tolerance, "out");
  // log_sum near 8e4 is rounded to its dtype (2^-8 in float32, also of bfloat16), and p with it.
  const double rounding = wide(GetParam().dtype) == DType::kFloat32 ? 4e-3 : 1e-9;
  expect_near(to_doubles(actual.log_sum.view()), expected.log_sum, rounding, "log_sum");
  const auto grad = to_doubles(actual.grad_qkv.view());
  for (size_t i = 0; i < grad.size(); ++i) {
    // ds = p (dp - delta) errs by p's rounding, times keys and queries of 100.
    ASSERT_NEAR(grad[i], expected.grad_qkv[i], 100 * 200 * rounding) << i;
  }
}

TEST_P(AttentionTest, KeysFarBelowTheMaximumGetNoWeight) {
  // One key scores 1e4, the others -1e4; the maximum comes in the last block, so what was summed
  // before is scaled to nothing.
  const Case c{{300}, 1, 1, 2};
  std::vector<double> qkv(c.qkv_shape().num_elements());
  for (int64_t token = 0; token < 300; ++token) {
    qkv[c.query(token, 0)] = 100;
    qkv[c.key(token, 0)] = token == 290 ? 100 : -100;
    qkv[c.value(token, 0)] = token == 290 ? 3 : 1;
  }
  const Results results = run(GetParam(), stream_, c, qkv, {}, 1.0);
  const auto out = to_doubles(results.out.view()), log_sum = to_doubles(results.log_sum.view());
  EXPECT_NEAR(out[2 * 289], 1, GetParam().tolerance);
  EXPECT_NEAR(log_sum[289], -1e4 + std::log(290), 1e-3);
  EXPECT_EQ(out[2 * 299], 3);
  EXPECT_EQ(log_sum[299], 1e4);
}

TEST_P(AttentionTest, GivesTheSameBitsEveryTime) {
  if (!GetParam().reproducible) GTEST_SKIP() << "not promised";
  const Case c{kLengths, 2, 2, 48};
  const auto qkv = random_values(c.qkv_shape().num_elements(), 9);
  const auto grad_out = random_values(c.out_shape().num_elements(), 10);
  const Results first = run(GetParam(), stream_, c, qkv, grad_out, 0.2);
  const Results second = run(GetParam(), stream_, c, qkv, grad_out, 0.2);
  EXPECT_EQ(to_doubles(first.out.view()), to_doubles(second.out.view()));
  EXPECT_EQ(to_doubles(first.log_sum.view()), to_doubles(second.log_sum.view()));
  EXPECT_EQ(to_doubles(first.grad_qkv.view()), to_doubles(second.grad_qkv.view()));
}

TEST_P(AttentionTest, ResultsDoNotDependOnTheNumberOfThreads) {
  if (GetParam().device != Device::kCpu) GTEST_SKIP() << "CPU only";
  const Case c{kLengths, 2, 2, 48};
  const auto qkv = random_values(c.qkv_shape().num_elements(), 9);
  const auto grad_out = random_values(c.out_shape().num_elements(), 10);
  const int threads = omp_get_max_threads();
  std::vector<std::vector<double>> outs, grads;
  for (int n : {1, 2, 3, 7}) {
    omp_set_num_threads(n);
    const Results results = run(GetParam(), stream_, c, qkv, grad_out, 0.2);
    outs.push_back(to_doubles(results.out.view()));
    grads.push_back(to_doubles(results.grad_qkv.view()));
  }
  omp_set_num_threads(threads);
  for (size_t i = 1; i < outs.size(); ++i) {
    EXPECT_EQ(outs[i], outs[0]);
    EXPECT_EQ(grads[i], grads[0]);
  }
}

TEST(AttentionGradientTest, BackwardMatchesFiniteDifferencesInFloat64) {
  const Backend backend{Device::kCpu, DType::kFloat64, 1e-12};
  const Stream stream(backend.device);
  const Case c{{1, 3, 0, 9, 130}, 2, 2, 3};
  auto qkv = random_values(c.qkv_shape().num_elements(), 11);
  const auto weight = random_values(c.out_shape().num_elements(), 12);
  const double scale = 0.6, step = 1e-5;
  auto loss = [&] {
    const auto out = to_doubles(run(backend, stream, c, qkv, {}, scale).out.view());
    double sum = 0;
    for (size_t i = 0; i < out.size(); ++i) sum += weight[i] * out[i];
    return sum;
  };
  const auto grad = to_doubles(run(backend, stream, c, qkv, weight, scale).grad_qkv.view());
  for (size_t i = 0; i < qkv.size(); i += 31) {  // 31 has no factor in common with the shape
    const double value = qkv[i];
    qkv[i] = value + step;
    const double above = loss();
    qkv[i] = value - step;
    const double below = loss();
    qkv[i] = value;
    ASSERT_NEAR(grad[i], (above - below) / (2 * step), 1e-7) << i;
  }
}

// --- beam attention
// -------------------------------------------------------------------------------

struct BeamCase {
  std::vector<int64_t> prefix_lengths, num_beams;  // per user
  int64_t suffix_length = 0, num_kv_heads = 1, group_size = 1, head_dim = 8;
  Case heads() const { return {{}, num_kv_heads, group_size, head_dim}; }
};

std::vector<int32_t> to_offsets(const std::vector<int64_t>& lengths) {
  return Case{lengths}.offsets();
}

/// Operands of beam_attention.
struct BeamData {
  std::vector<int32_t> prefix_offsets, beam_offsets;
  Shape qkv_shape, prefix_shape, suffix_shape, out_shape;
  std::vector<double> qkv, prefix, suffix;

  explicit BeamData(const BeamCase& c)
      : prefix_offsets(to_offsets(c.prefix_lengths)),
        beam_offsets(to_offsets(c.num_beams)),
        qkv_shape{beam_offsets.back(), c.heads().qkv_heads(), c.head_dim},
        prefix_shape{prefix_offsets.back(), c.heads().qkv_heads(), c.head_dim},
        suffix_shape{c.suffix_length, beam_offsets.back(), 2, c.num_kv_heads, c.head_dim},
        out_shape{beam_offsets.back(), c.num_kv_heads * c.group_size * c.head_dim},
        qkv(random_values(qkv_shape.num_elements(), 21)),
        prefix(random_values(prefix_shape.num_elements(), 22)),
        suffix(random_values(suffix_shape.num_elements(), 23)) {}
};

std::vector<double> run_beams(const Backend& backend, const Stream& stream, const BeamCase& c,
                              const BeamData& data, double scale) {
  const Buffer out =
      make_tensor(backend, data.out_shape, std::vector<double>(data.out_shape.num_elements(), NAN));
  const Buffer qkv = make_tensor(backend, data.qkv_shape, data.qkv);
  const Buffer prefix = make_tensor(backend, data.prefix_shape, data.prefix);
  const Buffer suffix = make_tensor(backend, data.suffix_shape, data.suffix);
  const Buffer prefix_offsets = make_int_tensor(backend, data.prefix_offsets);
  const Buffer beam_offsets = make_int_tensor(backend, data.beam_offsets);
  beam_attention(out.view(), qkv.view(), prefix.view(), prefix_offsets.view(), beam_offsets.view(),
                 c.suffix_length ? suffix.view() : TensorView{}, c.suffix_length, scale, stream);
  return to_doubles(out.view());
}

/// From the formula: each beam's newest token over its user's history, its suffix and itself.
std::vector<double> beam_oracle(const BeamCase& c, const BeamData& data, double scale) {
  const Case heads = c.heads();
  const int64_t dim = c.head_dim, to_value = c.num_kv_heads * dim;
  std::vector<double> out;
  const auto attend = [&](int64_t user, int64_t beam, int64_t head) {
    const int64_t kv_head = head / c.group_size;
    std::vector<const double*> keys;
    for (int64_t t = data.prefix_offsets[user]; t < data.prefix_offsets[user + 1]; ++t) {
      keys.push_back(&data.prefix[heads.key(t, kv_head)]);
    }
    for (int64_t i = 0; i < c.suffix_length; ++i) {
      const int64_t row = i * data.beam_offsets.back() + beam;
      keys.push_back(&data.suffix[row * 2 * to_value + kv_head * dim]);
    }
    keys.push_back(&data.qkv[heads.key(beam, kv_head)]);
    std::vector<double> p;
    for (const double* key : keys) {
      double score = 0;
      for (int64_t d = 0; d < dim; ++d) score += data.qkv[heads.query(beam, head) + d] * key[d];
      p.push_back(scale * score);
    }
    const double largest = *std::max_element(p.begin(), p.end());
    double sum = 0;
    for (double& x : p) sum += x = std::exp(x - largest);
    for (int64_t d = 0; d < dim; ++d) {
      double total = 0;
      for (size_t j = 0; j < keys.size(); ++j) total += p[j] / sum * keys[j][to_value + d];
      out.push_back(total);
    }
  };
  for (size_t user = 0; user < c.num_beams.size(); ++user) {
    for (int64_t beam = data.beam_offsets[user]; beam < data.beam_offsets[user + 1]; ++beam) {
      for (int64_t head = 0; head < heads.num_heads(); ++head) attend(user, beam, head);
    }
  }
  return out;
}

void expect_beams_match(const Backend& backend, const Stream& stream, const BeamCase& c) {
  SCOPED_TRACE(::testing::Message()
               << c.num_kv_heads << " kv heads, groups of " << c.group_size << ", head_dim "
               << c.head_dim << ", suffix " << c.suffix_length);
  const BeamData data(c);
  const double scale = 1 / std::sqrt(c.head_dim);
  expect_near(run_beams(backend, stream, c, data, scale), beam_oracle(c, data, scale),
              out_tolerance(backend), "out");
}

class BeamAttentionTest : public BackendTest {};
MIRABELLE_INSTANTIATE_BACKENDS(BeamAttentionTest);

TEST_P(BeamAttentionTest, MatchesTheFormula) {
  expect_beams_match(GetParam(), stream_, {{80, 5, 33, 17}, {50, 3, 1, 20}, 2, 2, 1, 64});
}

TEST_P(BeamAttentionTest, MatchesTheFormulaForGroupsOfQueryHeads) {
  for (int64_t group_size : {2, 4, 7}) {
    expect_beams_match(GetParam(), stream_, {{20, 140}, {10, 4}, 3, 2, group_size, 8});
    expect_beams_match(GetParam(), stream_, {{20, 140}, {50, 4}, 3, 2, group_size, 64});
  }
}

TEST_P(BeamAttentionTest, MatchesTheFormulaForEverySuffixLength) {
  for (int64_t suffix_length : {0, 1, 2, 3, 5}) {
    expect_beams_match(GetParam(), stream_, {{30}, {9}, suffix_length, 1, 2, 32});
  }
}

TEST_P(BeamAttentionTest, MatchesTheFormulaForEveryWidthOfTiles) {
  for (int64_t head_dim : {1, 5, 16, 32, 50, 64, 96, 100, 128, 256}) {
    expect_beams_match(GetParam(), stream_, {{35, 130}, {3, 70}, 1, 2, 2, head_dim});
  }
}

TEST_P(BeamAttentionTest, MatchesTheFormulaAroundTheBlockSizes) {
  for (int64_t size : {1, 31, 32, 33, 63, 64, 65, 127, 128, 129}) {
    expect_beams_match(GetParam(), stream_, {{size, 5}, {3, size}, 1, 1, 1, 32});
  }
}

TEST_P(BeamAttentionTest, TakesMoreBeamsAndLongerHistoriesThanABlock) {
  for (int64_t head_dim : {16, 64}) {
    expect_beams_match(GetParam(), stream_, {{300, 129}, {150, 257}, 1, 1, 1, head_dim});
  }
}

// Few blocks and long histories: the GPU splits them, and some parts get no keys.
TEST_P(BeamAttentionTest, TakesHistoriesOfManyBlocksForFewBeams) {
  for (int64_t group_size : {1, 4}) {
    for (int64_t suffix_length : {0, 3}) {
      const auto expect_match = [&](const std::vector<int64_t>& histories,
                                    const std::vector<int64_t>& beams, int64_t head_dim) {
        expect_beams_match(GetParam(), stream_,
                           {histories, beams, suffix_length, 2, group_size, head_dim});
      };
      expect_match({3000}, {5}, 64);
      expect_match({1000, 300}, {5, 70}, 128);
      expect_match({2000, 0, 30, 1}, {3, 2, 0, 66}, 32);
      expect_match({0, 1601}, {3, 1}, 96);
    }
  }
}

TEST_P(BeamAttentionTest, TakesUsersWithoutHistoryOrBeams) {
  for (int64_t head_dim : {48, 64}) {
    expect_beams_match(GetParam(), stream_, {{0, 12, 0, 4}, {3, 0, 0, 2}, 1, 1, 1, head_dim});
    expect_beams_match(GetParam(), stream_, {{}, {}, 0, 1, 1, head_dim});
  }
}

TEST_P(BeamAttentionTest, BeamWithoutHistoryOrSuffixReturnsItsValue) {
  const BeamCase c{{0}, {2}, 0, 1, 1, 4};
  const BeamData data(c);
  const auto out = run_beams(GetParam(), stream_, c, data, 7);
  for (int64_t i = 0; i < 8; ++i) EXPECT_EQ(out[i], data.qkv[i / 4 * 12 + 8 + i % 4]);
}

TEST_P(BeamAttentionTest, HugeScoresNeitherOverflowNorLoseTheSoftmax) {
  const BeamCase c{{150}, {5}, 2, 1, 1, 8};
  const BeamData data(c);
  const auto out = run_beams(GetParam(), stream_, c, data, 1e4);
  expect_near(out, beam_oracle(c, data, 1e4), 2e-2, "out");
}

TEST_P(BeamAttentionTest, GivesTheSameBitsEveryTime) {
  for (const BeamCase& c : {BeamCase{{80, 5, 0, 170}, {50, 3, 7, 140}, 2, 2, 2, 16},
                            {{3000, 170}, {5, 70}, 1, 2, 2, 64}}) {
    const BeamData data(c);
    EXPECT_EQ(run_beams(GetParam(), stream_, c, data, 0.25),
              run_beams(GetParam(), stream_, c, data, 0.25));
  }
}

TEST_P(BeamAttentionTest, ResultsDoNotDependOnTheNumberOfThreads) {
  if (GetParam().device != Device::kCpu) GTEST_SKIP() << "CPU only";
  const BeamCase c{{80, 5, 0, 170}, {50, 3, 7, 140}, 2, 2, 2, 16};
  const BeamData data(c);
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const auto alone = run_beams(GetParam(), stream_, c, data, 0.25);
  for (int n : {2, 5}) {
    omp_set_num_threads(n);
    EXPECT_EQ(run_beams(GetParam(), stream_, c, data, 0.25), alone);
  }
  omp_set_num_threads(threads);
}

// --- checks
// ---------------------------------------------------------------------------------------

/// The message that `call` throws, or "" if it does not.
template <typename Call>
std::string error_of(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

Buffer floats(const Shape& shape) { return Buffer(shape, DType::kFloat32); }

Buffer offsets_of(const std::vector<int32_t>& values) {
  return make_int_tensor({Device::kCpu, DType::kFloat32, 0}, values);
}

struct AttentionOperands {
  Buffer out = floats({5, 12}), log_sum = floats({5, 4}), qkv = floats({5, 8, 3});
  Buffer offsets = offsets_of({0, 2, 5});
  int64_t max_sequence_tokens = 3;
  Buffer grad_out = floats({5, 12}), grad_qkv = floats({5, 8, 3});

  std::string forward_error() const {
    return error_of([&] {
      attention_forward(out.view(), log_sum.view(), qkv.view(), offsets.view(), max_sequence_tokens,
                        1, Stream());
    });
  }
  std::string backward_error() const {
    return error_of([&] {
      attention_backward(grad_qkv.view(), grad_out.view(), out.view(), log_sum.view(), qkv.view(),
                         offsets.view(), max_sequence_tokens, 1, Stream());
    });
  }
};

/// Both passes refuse the operands with this message.
void expect_both_refuse(const AttentionOperands& operands, const std::string& message) {
  EXPECT_EQ(operands.forward_error(), message);
  EXPECT_EQ(operands.backward_error(), message);
}

TEST(AttentionCheckTest, AcceptsMatchingOperands) { expect_both_refuse({}, ""); }

TEST(AttentionCheckTest, RefusesHeadsOfTheWrongRankOrNumber) {
  AttentionOperands operands;
  operands.qkv = floats({5, 24});
  expect_both_refuse(operands,
                     "qkv has shape [5, 24], wanted [num_tokens, num_heads + 2 * num_kv_heads, "
                     "head_dim]");
  const std::string wanted = ", wanted num_heads + 2 * num_kv_heads and a multiple of num_kv_heads";
  for (const int64_t num_heads : {4, 5, 10, 3}) {  // 0, 1/2, 3 and -1/2 key/value heads
    operands.qkv = floats({5, num_heads, 3});
    expect_both_refuse(operands,
                       "qkv has " + std::to_string(num_heads) + " heads and out 4" + wanted);
  }
  operands = {};
  operands.out = floats({5, 0});
  expect_both_refuse(operands, "qkv has 8 heads and out 0" + wanted);
}

TEST(AttentionCheckTest, RefusesHeadsWithoutATile) {
  AttentionOperands operands;
  operands.qkv = floats({5, 8, 257});
  expect_both_refuse(operands, "head_dim is 257, wanted 1 to 256");
  operands.qkv = floats({5, 8, 0});
  expect_both_refuse(operands, "head_dim is 0, wanted 1 to 256");
}

TEST(AttentionCheckTest, RefusesOutputsOfOtherShapesOrTypes) {
  AttentionOperands operands;
  operands.out = floats({5, 11});
  expect_both_refuse(operands, "out has shape [5, 11], wanted [5, a multiple of 3]");
  operands.out = floats({4, 12});
  expect_both_refuse(operands, "out has shape [4, 12], wanted [5, 12]");
  operands.out = Buffer({5, 12}, DType::kFloat64);
  expect_both_refuse(operands, "out is float64, wanted float32");
  operands = {};
  operands.log_sum = floats({5, 2});
  expect_both_refuse(operands, "log_sum has shape [5, 2], wanted [5, 4]");
}

TEST(AttentionCheckTest, RefusesGradientsOfOtherShapes) {
  AttentionOperands operands;
  operands.grad_out = floats({4, 12});
  EXPECT_EQ(operands.backward_error(), "grad_out has shape [4, 12], wanted [5, 12]");
  operands = {};
  operands.grad_qkv = floats({5, 7, 3});
  EXPECT_EQ(operands.backward_error(), "grad_qkv has shape [5, 7, 3], wanted [5, 8, 3]");
}

TEST(AttentionCheckTest, RefusesOffsetsThatAreNotThoseOfTheTokens) {
  AttentionOperands operands;
  operands.offsets = offsets_of({});
  expect_both_refuse(operands, "sequence_offsets has shape [0], wanted [parts + 1]");
  operands.offsets = Buffer({3}, DType::kInt64);
  expect_both_refuse(operands, "sequence_offsets is int64, wanted int32");
  operands.offsets = offsets_of({1, 5});
  expect_both_refuse(operands, "sequence_offsets runs from 1 to 5, wanted from 0 to 5");
  operands.offsets = offsets_of({0, 6});
  expect_both_refuse(operands, "sequence_offsets runs from 0 to 6, wanted from 0 to 5");
  operands.offsets = offsets_of({0, 3, 2, 5});
  expect_both_refuse(operands, "sequence_offsets[2] is 2, wanted at least 3");
}

TEST(AttentionCheckTest, RefusesSequencesLongerThanTheirBound) {
  AttentionOperands operands;
  operands.max_sequence_tokens = 2;
  expect_both_refuse(operands, "sequence 1 has 3 tokens, max_sequence_tokens is 2");
}

struct BeamOperands {
  Buffer out = floats({3, 12}), qkv = floats({3, 8, 3}), prefix = floats({5, 8, 3});
  Buffer prefix_offsets = offsets_of({0, 2, 5}), beam_offsets = offsets_of({0, 1, 3});
  Buffer suffix = floats({2, 3, 2, 2, 3});
  int64_t suffix_length = 2;

  std::string error() const {
    return error_of([&] {
      beam_attention(out.view(), qkv.view(), prefix.view(), prefix_offsets.view(),
                     beam_offsets.view(), suffix.view(), suffix_length, 1, Stream());
    });
  }
};

TEST(BeamAttentionCheckTest, AcceptsMatchingOperands) { EXPECT_EQ(BeamOperands().error(), ""); }

TEST(BeamAttentionCheckTest, RefusesProjectionsAndOutputsOfOtherShapes) {
  BeamOperands operands;
  operands.qkv = floats({3, 24});
  EXPECT_EQ(operands.error(),
            "qkv has shape [3, 24], wanted [num_tokens, num_heads + 2 * num_kv_heads, head_dim]");
  operands = {};
  operands.out = floats({2, 12});
  EXPECT_EQ(operands.error(), "out has shape [2, 12], wanted [3, 12]");
}

TEST(BeamAttentionCheckTest, RefusesAPrefixOfOtherHeads) {
  BeamOperands operands;
  operands.prefix = floats({5, 24});
  EXPECT_EQ(operands.error(),
            "prefix_qkv has shape [5, 24], wanted [num_prefix_tokens, num_heads + 2 * "
            "num_kv_heads, head_dim]");
  operands.prefix = floats({5, 7, 3});
  EXPECT_EQ(operands.error(), "prefix_qkv has shape [5, 7, 3], wanted [5, 8, 3]");
}

TEST(BeamAttentionCheckTest, RefusesOffsetsThatDoNotFit) {
  BeamOperands operands;
  operands.prefix_offsets = offsets_of({0, 2, 4});
  EXPECT_EQ(operands.error(), "prefix_offsets runs from 0 to 4, wanted from 0 to 5");
  operands = {};
  operands.beam_offsets = offsets_of({0, 4, 3});
  EXPECT_EQ(operands.error(), "beam_offsets[2] is 3, wanted at least 4");
  operands.beam_offsets = offsets_of({0, 3});
  EXPECT_EQ(operands.error(),
            "prefix_offsets has shape [3], beam_offsets [2]: wanted [num_users + 1] both");
}

TEST(BeamAttentionCheckTest, RefusesASuffixThatDoesNotFit) {
  BeamOperands operands;
  operands.suffix = floats({2, 3, 2, 3});
  EXPECT_EQ(operands.error(), "suffix_kv has shape [2, 3, 2, 3], wanted [2, 3, 2, 2, 3]");
  operands.suffix_length = -1;
  EXPECT_EQ(operands.error(), "suffix_length is -1, wanted 0 or more");
}

}  // namespace
}  // namespace mirabelle::testing
