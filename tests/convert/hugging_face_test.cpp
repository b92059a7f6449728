// Models that transformers made, with the logits that it computes: see tests/interop.

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <numeric>

#include "mirabelle/convert/hugging_face_config.h"
#include "mirabelle/convert/model_files.h"
#include "mirabelle/convert/vocabulary_map.h"
#include "mirabelle/core/files.h"
#include "mirabelle/data/npy.h"
#include "mirabelle/model/transformer.h"
#include "mirabelle/training/checkpoint.h"
#include "support/errors.h"
#include "support/temporary_folder.h"
#include "support/tiny_model.h"

namespace mirabelle {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::expect_error;
using testing::TinyBatch;

const fs::path kFixtures = fs::path(MIRABELLE_FIXTURES) / "hugging_face";

class HuggingFaceModelTest : public ::testing::TestWithParam<std::string> {
 protected:
  fs::path folder() const { return kFixtures / GetParam(); }
  std::vector<int32_t> tokens() const {
    return json::parse(read_text_file(folder() / "tokens.json")).get<std::vector<int32_t>>();
  }
  std::vector<float> expected_logits() const {
    NpyReader reader(folder() / "logits.npy");
    std::vector<float> values(reader.num_rows() * reader.dim());
    reader.read_rows(reader.num_rows(), values.data());
    return values;
  }
  /// The rows of the vocabulary, `padded` in all.
  static std::vector<int64_t> padded_rows(int64_t vocab_size, int64_t padded) {
    std::vector<int64_t> rows(vocab_size);
    std::iota(rows.begin(), rows.end(), 0);
    rows.resize(padded, kZeroRow);
    return rows;
  }
  /// Of all tokens, of a model cut in so many shards.
  std::vector<float> logits_of(const HuggingFaceConfig& config, const TensorSource& source,
                               int64_t num_shards) const {
    ModelShare share;
    share.num_shards = num_shards;
    share.reproducible = num_shards > 1;
    Transformer model(config.model, config.vocab_size, 64, DType::kFloat32, {64, 64, false},
                      Device::kCpu, share);
    const RemappedVocabulary padded(source, padded_rows(config.vocab_size, 64), 0);
    read_share(model.weights(), model.layout(), padded);
    const TinyBatch batch(tokens());
    const auto n = static_cast<int64_t>(batch.tokens.size());
    Arena sizes(Device::kCpu);
    model.plan_logit_shards(sizes, n, DType::kFloat32);
    Arena memory(sizes.bytes_used(), Device::kCpu);
    std::vector<float> logits(n * config.vocab_size);
    model.logits(view_of(logits.data(), {n, config.vocab_size}),
                 model.forward(batch.view(), Stream()),
                 model.plan_logit_shards(memory, n, DType::kFloat32), Stream());
    return logits;
  }
};

TEST_P(HuggingFaceModelTest, HasTheLogitsThatTransformersComputes) {
  const HuggingFaceConfig config = read_hugging_face_config(folder() / "config.json");
  const auto source = open_hugging_face_tensors(folder());
  check_tensors(*source, ParameterLayout(config.model, config.vocab_size).logical_tensors(), "");
  const std::vector<float> expected = expected_logits();
  double largest = 0;
  for (const int64_t num_shards : {1, 2, 4}) {
    const std::vector<float> actual = logits_of(config, *source, num_shards);
    ASSERT_EQ(actual.size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_NEAR(actual[i], expected[i], 1e-5) << i << " of " << num_shards << " shards";
      largest = std::max<double>(largest, std::abs(expected[i]));
    }
  }
  EXPECT_GT(largest, 1);
}

TEST_P(HuggingFaceModelTest, TheConfigurationComesBackAsItWas) {
  const HuggingFaceConfig config = read_hugging_face_config(folder() / "config.json");
  EXPECT_EQ(config.vocab_size, 40);
  EXPECT_EQ(config.max_positions, 64);
  testing::TemporaryFolder written;
  // what transformers 5 reads, what transformers 4 reads, and both
  for (const char* removed : {"", "rope_parameters", "rope_theta"}) {
    json text = json::parse(hugging_face_config(config, "float32").dump());
    text.erase(removed);
    if (removed == std::string("rope_theta")) text.erase("rope_scaling");
    const fs::path path = written.write("config.json", text.dump());
    const HuggingFaceConfig again = read_hugging_face_config(path);
    EXPECT_EQ(hugging_face_config(again, "float32"), hugging_face_config(config, "float32"));
  }
  const json original = json::parse(read_text_file(folder() / "config.json"));
  EXPECT_EQ(hugging_face_architecture(config.model), original["architectures"][0]);
}

TEST_P(HuggingFaceModelTest, ACheckpointHoldsTheSameWeights) {
  const HuggingFaceConfig config = read_hugging_face_config(folder() / "config.json");
  const auto source = open_hugging_face_tensors(folder());
  testing::TemporaryFolder output;
  const RemappedVocabulary padded(*source, padded_rows(config.vocab_size, 64), 0);
  const auto tensors = ParameterLayout(config.model, 64).logical_tensors();
  const auto ignore = [](int64_t, int64_t) {};
  const std::string file = write_checkpoint_file(output.path(), padded, tensors, ignore);
  output.write("tokenizer.h5", "");
  complete_checkpoint(output.path(), {}, {file}, "");
  const auto checkpoint = open_checkpoint_tensors(output.path());
  checkpoint->verify();
  EXPECT_EQ(logits_of(config, *checkpoint, 1), logits_of(config, *source, 1));
  output.write("tokenizer.h5", "changed");
  expect_error(ErrorKind::kData, "tokenizer.h5: its SHA-256",
               [&] { open_checkpoint_tensors(output.path())->verify(); });
}

INSTANTIATE_TEST_SUITE_P(Families, HuggingFaceModelTest,
                         ::testing::Values("llama", "llama3", "qwen2", "qwen3"),
                         [](const auto& info) { return info.param; });

class HuggingFaceConfigTest : public ::testing::Test {
 protected:
  static json example() {
    return json::parse(R"({"architectures": ["LlamaForCausalLM"], "vocab_size": 32000,
        "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 96, "rms_norm_eps": 1e-5})");
  }
  HuggingFaceConfig read(const json& config) {
    return read_hugging_face_config(folder_.write("config.json", config.dump()));
  }
  template <typename Change>
  void expect_refused(const std::string& message, Change change) {
    json config = example();
    change(config);
    expect_error(ErrorKind::kData, "config.json: " + message, [&] { read(config); });
  }
  testing::TemporaryFolder folder_;
};

// Llama 2: no grouped queries named, no head_dim, no rotary parameters.
TEST_F(HuggingFaceConfigTest, WhatIsNotSaidHasTheFamilysDefault) {
  const HuggingFaceConfig config = read(example());
  EXPECT_EQ(config.model.num_kv_heads, 4);
  EXPECT_EQ(config.model.head_dim(), 16);
  EXPECT_EQ(config.model.rope_theta, 10000);
  EXPECT_EQ(config.model.norm_epsilon, 1e-5);
  EXPECT_EQ(config.model.dropout, 0);
  EXPECT_FALSE(config.model.tie_embeddings);
  EXPECT_FALSE(config.bos_token);
  json qwen = example();
  qwen["architectures"][0] = "Qwen3ForCausalLM";
  EXPECT_EQ(read(qwen).model.head_dim(), 128);
}

TEST_F(HuggingFaceConfigTest, ReadsTheRotaryScalingOfTransformers4) {
  json config = example();
  config["rope_theta"] = 500000;
  config["rope_scaling"] = {{"type", "yarn"}, {"factor", 4}, {"beta_fast", 20}};
  config["max_position_embeddings"] = 32768;
  const TransformerConfig model = read(config).model;
  EXPECT_EQ(model.rope_theta, 500000);
  EXPECT_EQ(model.rope_scaling, "yarn");
  EXPECT_EQ(model.rope_original_tokens, 32768);
  EXPECT_EQ(model.rope_high_rotations, 20);
}

TEST_F(HuggingFaceConfigTest, RefusesOtherModels) {
  expect_refused("lacks architectures", [](json& c) { c.erase("architectures"); });
  expect_refused("architecture \"GPT2LMHeadModel\", wanted LlamaForCausalLM",
                 [](json& c) { c["architectures"][0] = "GPT2LMHeadModel"; });
  expect_refused("hidden_act \"gelu\"", [](json& c) { c["hidden_act"] = "gelu"; });
  for (const char* option : {"attention_bias", "mlp_bias", "use_sliding_window"}) {
    expect_refused(option, [&](json& c) { c[option] = true; });
  }
  expect_refused("rope_scaling: rope_type \"dynamic\"", [](json& c) {
    c["rope_scaling"] = {{"rope_type", "dynamic"}, {"factor", 2}};
  });
  expect_refused("rope_scaling: lacks factor", [](json& c) {
    c["rope_scaling"] = {{"rope_type", "linear"}};
  });
}

TEST_F(HuggingFaceConfigTest, RefusesSizesThatMakeNoSense) {
  expect_refused("lacks hidden_size", [](json& c) { c["hidden_size"] = nullptr; });
  expect_refused("hidden_size", [](json& c) { c["hidden_size"] = "64"; });
  expect_refused("model.hidden_size", [](json& c) { c["hidden_size"] = -64; });
  expect_refused("model.", [](json& c) { c["num_attention_heads"] = 0; });
  expect_refused("model.num_heads 4", [](json& c) { c["num_key_value_heads"] = 3; });
  expect_refused("wanted vocab_size", [](json& c) { c["vocab_size"] = 0; });
  expect_refused("wanted vocab_size", [](json& c) { c["vocab_size"] = 1LL << 40; });
}

TEST(HuggingFaceArchitectureTest, NoneHasNormsOfHeadsAndBiases) {
  TransformerConfig model;
  model.qkv_bias = model.query_key_norm = true;
  expect_error(ErrorKind::kUsage, "query_key_norm", [&] { hugging_face_architecture(model); });
}

}  // namespace
}  // namespace mirabelle
