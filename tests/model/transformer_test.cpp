#include "mirabelle/model/transformer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "mirabelle/kernels/reduce.h"
#include "mirabelle/model/decoder.h"
#include "support/tiny_model.h"

namespace mirabelle {
namespace {

using testing::make_tiny_model;
using testing::tiny_config;
using testing::tiny_qwen_config;
using testing::TinyBatch;
using testing::vary_vectors;

constexpr int64_t kVocab = 23;

double total_loss(Transformer& model, const TinyBatch& batch) {
  model.begin_step(1.0, /*seed=*/5, /*step=*/11, Stream());
  model.forward_backward(batch.view(), {}, Stream());
  return *model.loss_sum().as<double>();
}

struct ModelCase {
  const char* name;
  int64_t num_kv_heads;
  bool tie_embeddings;
  double dropout;
  bool is_qwen = false;
};
void PrintTo(const ModelCase& model_case, std::ostream* out) { *out << model_case.name; }

class TransformerGradientTest : public ::testing::TestWithParam<ModelCase> {};

// Every kind of parameter, a few elements each, against central differences of the whole model in
// float64: what only one wrong term in any backward kernel, or in their order, would break.
TEST_P(TransformerGradientTest, MatchesFiniteDifferencesOfTheLoss) {
  TransformerConfig config = GetParam().is_qwen ? tiny_qwen_config() : tiny_config();
  config.num_kv_heads = GetParam().num_kv_heads;
  config.tie_embeddings = GetParam().tie_embeddings;
  config.dropout = GetParam().dropout;
  Transformer model = make_tiny_model(config, kVocab, DType::kFloat64);
  vary_vectors(model.weights().as<double>(), model.layout());
  const TinyBatch batch({1, 7, 5, 12}, kVocab, 3);
  total_loss(model, batch);
  std::vector<double> gradient(model.gradients().as<double>(),
                               model.gradients().as<double>() + model.gradients().num_elements());

  double* weights = model.weights().as<double>();
  double largest = 0;
  for (const LogicalPiece& piece : model.layout().pieces()) {
    const int64_t columns = piece.shape.rank() == 1 ? 1 : piece.shape[1];
    for (int64_t k = 0; k < 3; ++k) {
      const int64_t i = piece.offset + (k * 7919 + 13) % (piece.num_rows * columns);
      const double saved = weights[i], h = 1e-5;
      weights[i] = saved + h;
      const double above = total_loss(model, batch);
      weights[i] = saved - h;
      const double below = total_loss(model, batch);
      weights[i] = saved;
      EXPECT_NEAR(gradient[i], (above - below) / (2 * h), 2e-7 * (1 + std::abs(gradient[i])))
          << piece.name << " element " << i;
      largest = std::max(largest, std::abs(gradient[i]));
    }
  }
  EXPECT_GT(largest, 0.1);  // not all zero
}

INSTANTIATE_TEST_SUITE_P(Models, TransformerGradientTest,
                         ::testing::Values(ModelCase{"tied", 4, true, 0},
                                           ModelCase{"untied", 4, false, 0},
                                           ModelCase{"grouped_queries", 2, true, 0},
                                           ModelCase{"one_key_head_with_dropout", 1, false, 0.3},
                                           ModelCase{"tied_with_dropout", 2, true, 0.5},
                                           ModelCase{"qwen", 2, true, 0.3, true},
                                           ModelCase{"qwen_one_key_head", 1, false, 0, true}),
                         [](const auto& info) { return info.param.name; });

TEST(TransformerTest, LossOfAnUntrainedModelIsThatOfAGuess) {
  TransformerConfig config = tiny_config();
  config.initializer_range = 0.01;
  Transformer model = make_tiny_model(config, kVocab, DType::kFloat32);
  const TinyBatch batch({30, 30}, kVocab, 1);
  EXPECT_NEAR(total_loss(model, batch) / 60, std::log(kVocab), 0.05);
}

TEST(TransformerTest, APackedSequenceKnowsNothingOfItsNeighbours) {
  Transformer model = make_tiny_model(tiny_config(), kVocab, DType::kFloat64);
  const TinyBatch both({6, 9}, kVocab, 4);
  const TensorView hidden = model.forward(both.view(), Stream());
  const int64_t width = hidden.shape[1];
  const std::vector<double> second(hidden.as<double>() + 6 * width,
                                   hidden.as<double>() + 15 * width);
  const TinyBatch alone = both.sequence(1);
  const TensorView again = model.forward(alone.view(), Stream());
  for (size_t i = 0; i < second.size(); ++i) {
    EXPECT_NEAR(again.as<double>()[i], second[i], 1e-12) << i;
  }
}

TEST(TransformerTest, TheFutureDoesNotChangeThePast) {
  Transformer model = make_tiny_model(tiny_config(), kVocab, DType::kFloat64);
  TinyBatch batch({8}, kVocab, 5);
  const TensorView before = model.forward(batch.view(), Stream());
  const std::vector<double> first(before.as<double>(), before.as<double>() + 7 * before.shape[1]);
  batch.tokens[7] = (batch.tokens[7] + 1) % kVocab;
  const TensorView after = model.forward(batch.view(), Stream());
  EXPECT_TRUE(std::equal(first.begin(), first.end(), after.as<double>()));
}

TEST(TransformerTest, SplittingABatchInPartsAddsUpToTheSameGradient) {
  TransformerConfig config = tiny_config();
  config.dropout = 0.4;
  Transformer model = make_tiny_model(config, kVocab, DType::kFloat64);
  const TinyBatch both({6, 9}, kVocab, 4);
  const double loss = total_loss(model, both);
  const std::vector<double> whole(
      model.gradients().as<double>(),
      model.gradients().as<double>() + model.gradients().num_elements());
  total_loss(model, both.sequence(0));
  const double first_loss = *model.loss_sum().as<double>();
  model.forward_backward(both.sequence(1).view(), {}, Stream());
  EXPECT_NEAR(first_loss + *model.loss_sum().as<double>(), loss, 1e-11);
  for (size_t i = 0; i < whole.size(); ++i) {
    ASSERT_NEAR(model.gradients().as<double>()[i], whole[i], 1e-12) << i;
  }
}

TEST(TransformerTest, HandsOutEveryGradientOnceAndOnlyWhenItIsFinal) {
  TransformerConfig config = tiny_config();
  for (bool tied : {true, false}) {
    config.tie_embeddings = tied;
    Transformer model = make_tiny_model(config, kVocab, DType::kFloat64);
    const TinyBatch batch({4, 11}, kVocab, 6);
    std::vector<double> handed_out(model.gradients().num_elements(), NAN);
    std::vector<int> times(handed_out.size(), 0);
    const double* base = model.gradients().as<double>();
    PassHooks hooks;
    hooks.gradient_final = [&](int64_t region, const TensorView& range) {
      EXPECT_EQ(range.as<double>() - base, model.layout().regions()[region].begin);
      const int64_t begin = range.as<double>() - base;
      for (int64_t i = 0; i < range.num_elements(); ++i) {
        handed_out[begin + i] = range.as<double>()[i];
        ++times[begin + i];
      }
    };
    model.begin_step(1.0, 0, 0, Stream());
    model.forward_backward(batch.view(), hooks, Stream());
    EXPECT_EQ(std::count(times.begin(), times.end(), 1), static_cast<int64_t>(times.size()));
    EXPECT_TRUE(std::equal(handed_out.begin(), handed_out.end(), base));
  }
}

TEST(TransformerTest, CountsUsefulOperationsByHand) {
  TransformerConfig config;
  config.hidden_size = 128;
  config.num_layers = 4;
  config.ffn_hidden_size = 384;
  const Transformer model(config, 800, 1024, DType::kFloat32, {64, 64, false});
  const double weights = 4 * (4 * 128 * 128 + 3 * 128 * 384) + 800 * 128;
  const double attention = 6.0 * 4 * 128 * (10 * 10 + 3 * 3);
  EXPECT_DOUBLE_EQ(model.training_flops({10, 3}), 6 * weights * 13 + attention);
}

TEST(TransformerTest, RefusesABatchThatWasNotPlanned) {
  Transformer model = make_tiny_model(tiny_config(), kVocab, DType::kFloat32);
  EXPECT_THROW(model.forward(TinyBatch({150}, kVocab, 1).view(), Stream()), Error);
}

TEST(TransformerTest, RefusesToTrainWithoutGradients) {
  Transformer model(tiny_config(), kVocab, 32, DType::kFloat32, {64, 64, /*training=*/false});
  EXPECT_THROW(model.forward_backward(TinyBatch({3}, kVocab, 1).view(), {}, Stream()), Error);
}

TEST(TransformerTest, RefusesLevelsThatTheVocabularyDoesNotHave) {
  const auto message = [](const LossOptions& loss) -> std::string {
    Transformer::Limits limits = {64, 64, /*training=*/true};
    limits.loss = loss;
    try {
      Transformer::sketch(tiny_config(), kVocab, 32, DType::kFloat32, limits, Device::kCpu);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message({}), "");
  EXPECT_EQ(message({{1, 5, kVocab}, 0.1, true}), "");
  for (const std::vector<int32_t>& bounds :
       std::vector<std::vector<int32_t>>{{1, kVocab + 1}, {-1, 5}, {5, 4}, {5}}) {
    EXPECT_NE(message({bounds}).find("level_bounds must ascend"), std::string::npos);
  }
  EXPECT_NE(message({{}, 0.1}).find("need level_bounds"), std::string::npos);
  EXPECT_NE(message({{}, 0, true}).find("need level_bounds"), std::string::npos);
  Transformer model = make_tiny_model(tiny_config(), kVocab, DType::kFloat32);
  EXPECT_THROW(model.set_level_weights({1, 2}, Stream()), Error);
}

// --- parameters
// -----------------------------------------------------------------------------------

TEST(ParametersTest, LogicalTensorsCoverTheFlatArrayOnce) {
  TransformerConfig config = tiny_qwen_config();
  config.num_kv_heads = 2;
  config.tie_embeddings = false;
  const ParameterLayout layout(config, 32);
  std::vector<int> times(layout.num_elements(), 0);
  std::map<std::string, int64_t> rows;
  for (const LogicalPiece& piece : layout.pieces()) {
    const int64_t columns = piece.shape.rank() == 1 ? 1 : piece.shape[1];
    for (int64_t i = 0; i < piece.num_rows * columns; ++i) ++times[piece.offset + i];
    EXPECT_EQ(piece.row_begin, rows[piece.name]) << piece.name;
    rows[piece.name] += piece.num_rows;
    if (rows[piece.name] == piece.shape[0]) rows[piece.name] = -1000000;  // must not come again
  }
  EXPECT_EQ(std::count(times.begin(), times.end(), 1), layout.num_elements());
  EXPECT_EQ(rows.size(), 3u + 2 * (9 + 2 + 3));
  for (const auto& [name, count] : rows) EXPECT_EQ(count, -1000000) << name;
}

TEST(ParametersTest, InitialWeightsDependOnNameAndElementOnly) {
  TransformerConfig config = tiny_config(), other = config;
  other.num_kv_heads = 1;  // another storage order of the same query projection
  auto query_weights = [](const TransformerConfig& c) {
    const ParameterLayout layout(c, 32);
    const Buffer flat({layout.num_elements()}, DType::kFloat64);
    initialize_weights(flat.view(), layout, c, 32, 7);
    std::vector<double> rows;
    for (const LogicalPiece& piece : layout.pieces()) {
      if (piece.name != "model.layers.1.self_attn.q_proj.weight") continue;
      const double* first = flat.view().as<double>() + piece.offset;
      rows.insert(rows.end(), first, first + piece.num_rows * c.hidden_size);
    }
    return rows;
  };
  EXPECT_EQ(query_weights(config), query_weights(other));
}

TEST(ParametersTest, InitialWeightsHaveTheDeviationAskedFor) {
  TransformerConfig config = tiny_config();
  config.hidden_size = 128;
  config.ffn_hidden_size = 256;
  config.initializer_range = 0.02;
  const ParameterLayout layout(config, 512);
  const Buffer flat({layout.num_elements()}, DType::kFloat32);
  initialize_weights(flat.view(), layout, config, 500, 1);
  const TransformerTensors tensors =
      view_tensors(view_regions(flat.view(), layout), layout, config, 500);
  auto deviation = [](const TensorView& tensor) {
    double squares = 0;
    sum_of_squares(view_of(&squares, {1}), tensor.reshaped({tensor.num_elements()}), Stream());
    return std::sqrt(squares / static_cast<double>(tensor.num_elements()));
  };
  EXPECT_NEAR(deviation(tensors.layers[0].qkv), 0.02, 0.0005);
  EXPECT_NEAR(deviation(tensors.layers[1].down), 0.02 / 2, 0.0005);  // 1 / sqrt(2 * 2 layers)
  EXPECT_DOUBLE_EQ(deviation(tensors.final_norm), 1);
}

TEST(ParametersTest, RowsThatPadTheVocabularyAreZeroAndBiasesToo) {
  const TransformerConfig config = tiny_qwen_config();
  const ParameterLayout layout(config, 64);
  const Buffer flat({layout.num_elements()}, DType::kFloat32);
  initialize_weights(flat.view(), layout, config, 50, 1);
  const float* weights = flat.view().as<float>();
  const auto is_zero = [](float x) { return x == 0; };
  const int64_t existing = 50 * config.hidden_size, all = 64 * config.hidden_size;
  EXPECT_TRUE(std::none_of(weights, weights + existing, is_zero));
  EXPECT_TRUE(std::all_of(weights + existing, weights + all, is_zero));
  EXPECT_TRUE(std::all_of(weights + layout.qkv_biases(), weights + layout.num_elements(), is_zero));
  EXPECT_EQ(weights[layout.qkv_biases() - 1], 1);
  EXPECT_EQ(layout.num_elements() - layout.qkv_biases(), 2 * (4 + 2 * 4) * 10);
}

TEST(ParametersTest, GivenTokenRowsTakeThePlaceOfRandomOnesInEveryShare) {
  TransformerConfig config = tiny_config();
  config.tie_embeddings = false;
  const int64_t hidden = config.hidden_size;
  std::vector<float> given(20 * hidden);  // of a vocabulary of 20 tokens, 32 with padding
  for (int64_t i = 0; i < hidden; ++i) given[3 * hidden + i] = given[17 * hidden + i] = i - 1.5F;
  for (const int64_t rank : {0, 1}) {
    ModelShare share;
    share.tensor_parallel_size = share.num_shards = 2;
    share.tensor_parallel_rank = rank;
    const ParameterLayout layout(config, 32, share);
    const Buffer random({layout.num_elements()}, DType::kFloat32);
    const Buffer mixed({layout.num_elements()}, DType::kFloat32);
    initialize_weights(random.view(), layout, config, 20, 7);
    initialize_weights(mixed.view(), layout, config, 20, 7, given);
    int64_t num_rows = 0;
    for (const LogicalPiece& piece : layout.pieces()) {
      const bool is_vocabulary =
          piece.name == "model.embed_tokens.weight" || piece.name == "lm_head.weight";
      for (int64_t i = 0; i < piece.num_elements(); ++i) {
        const int64_t token = piece.row_begin + i / piece.num_columns, column = i % hidden;
        const bool is_given = is_vocabulary && (token == 3 || token == 17);
        const float expected = is_given
                                   ? static_cast<float>(config.initializer_range * (column - 1.5))
                                   : random.view().as<float>()[piece.offset + i];
        ASSERT_FLOAT_EQ(mixed.view().as<float>()[piece.offset + i], expected) << piece.name;
        num_rows += is_given && column == 0;
      }
    }
    EXPECT_EQ(num_rows, 2);  // one of them in each share, of embedding and head
  }
}

// --- decoder
// --------------------------------------------------------------------------------------

std::vector<double> log_softmax_of_last(Transformer& model, const std::vector<int32_t>& tokens) {
  const TinyBatch batch(tokens);
  const TensorView hidden = model.forward(batch.view(), Stream());
  const int64_t n = static_cast<int64_t>(tokens.size());
  const Buffer logits({1, model.vocab_size()}, DType::kFloat64);
  model.logits(logits.view(), hidden.rows(n - 1, n), {}, Stream());
  const double* x = logits.view().as<double>();
  double sum = 0;
  for (int64_t i = 0; i < model.vocab_size(); ++i) sum += std::exp(x[i]);
  std::vector<double> result;
  for (int64_t i = 0; i < model.vocab_size(); ++i) result.push_back(x[i] - std::log(sum));
  return result;
}

void expect_row(const TensorView& rows, int64_t row, const std::vector<double>& expected) {
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_NEAR(rows.as<double>()[row * rows.shape[1] + i], expected[i], 1e-11)
        << "row " << row << ", token " << i;
  }
}

class DecoderOfFamilyTest : public ::testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(IsQwen, DecoderOfFamilyTest, ::testing::Bool());

TEST_P(DecoderOfFamilyTest, EveryStepEqualsAFullForwardPass) {
  TransformerConfig config = GetParam() ? tiny_qwen_config() : tiny_config();
  config.num_kv_heads = 2;
  Transformer model = make_tiny_model(config, kVocab, DType::kFloat64);
  vary_vectors(model.weights().as<double>(), model.layout());
  Decoder decoder(model, {.max_prefix_tokens = 40,
                          .max_sequence_tokens = 20,
                          .max_users = 4,
                          .max_beams = 16,
                          .max_steps = 3});
  const std::vector<std::vector<int32_t>> histories = {{0, 3, 5, 7}, {0}, {0, 22, 1, 9, 9, 4, 2}};
  std::vector<int32_t> tokens, offsets = {0};
  for (const auto& history : histories) {
    tokens.insert(tokens.end(), history.begin(), history.end());
    offsets.push_back(static_cast<int32_t>(tokens.size()));
  }
  const TensorView first = decoder.prefill(tokens, offsets, Stream());
  for (int64_t user = 0; user < 3; ++user) {
    expect_row(first, user, log_softmax_of_last(model, histories[user]));
  }

  // The beams of each step: user, token, parent. All users have the same number.
  struct Beam {
    int32_t user, token, parent;
  };
  const std::vector<std::vector<Beam>> steps = {
      {{0, 4, 0}, {0, 6, 0}, {1, 2, 0}, {1, 7, 0}, {2, 8, 0}, {2, 1, 0}},
      {{0, 5, 1},
       {0, 7, 1},
       {0, 9, 0},
       {1, 3, 3},
       {1, 3, 2},
       {1, 9, 3},
       {2, 11, 5},
       {2, 12, 4},
       {2, 0, 4}},
      {{0, 1, 2}, {1, 6, 3}, {2, 2, 8}}};
  std::vector<std::vector<int32_t>> sequences(histories);
  for (const auto& beams : steps) {
    std::vector<int32_t> step_tokens, parents;
    std::vector<std::vector<int32_t>> extended;
    for (const Beam& beam : beams) {
      step_tokens.push_back(beam.token);
      parents.push_back(beam.parent);
      extended.push_back(&beams == &steps[0] ? histories[beam.user] : sequences[beam.parent]);
      extended.back().push_back(beam.token);
    }
    const Shape shape = {3, static_cast<int64_t>(beams.size()) / 3};
    const TensorView result =
        decoder.step(view_of(step_tokens.data(), shape), view_of(parents.data(), shape), Stream());
    for (size_t row = 0; row < extended.size(); ++row) {
      expect_row(result, static_cast<int64_t>(row), log_softmax_of_last(model, extended[row]));
    }
    sequences = extended;
  }
}

TEST(DecoderTest, RefusesWhatWasNotPlanned) {
  Transformer model = make_tiny_model(tiny_config(), kVocab, DType::kFloat64);
  Decoder decoder(model, {.max_prefix_tokens = 8,
                          .max_sequence_tokens = 6,
                          .max_users = 2,
                          .max_beams = 2,
                          .max_steps = 1});
  const std::vector<int32_t> long_history(7, 1), seven = {0, 7}, empty = {0, 0};
  EXPECT_THROW(decoder.prefill(long_history, seven, Stream()), Error);
  EXPECT_THROW(decoder.prefill({}, empty, Stream()), Error);
  const std::vector<int32_t> history = {0, 1}, two = {0, 2}, values = {1, 2, 3};
  decoder.prefill(history, two, Stream());
  const auto step = [&](const Shape& shape) {
    decoder.step(view_of(values.data(), shape), {}, Stream());
  };
  EXPECT_THROW(step({1, 3}), Error);
  EXPECT_THROW(step({2, 1}), Error);
  step({1, 2});
  EXPECT_THROW(step({1, 2}), Error);
}

}  // namespace
}  // namespace mirabelle
