#include <sstream>

#include "apps/trained_run.h"
#include "mirabelle/convert/safetensors.h"
#include "mirabelle/convert/tensor_source.h"
#include "mirabelle/core/random.h"

namespace mirabelle {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const fs::path kFixtures = fs::path(MIRABELLE_SOURCE) / "tests" / "fixtures" / "hugging_face";

class ConvertProgramTest : public testing::TrainedRun {
 protected:
  int convert(const std::string& arguments) const {
    const std::string command = "cd " + folder.path().string() + " && " + MIRABELLE_BIN +
                                "/mirabelle-convert " + arguments + " > out.txt 2>&1";
    return WEXITSTATUS(std::system(command.c_str()));
  }
  void expect_refused(const std::string& arguments, int status, const std::string& message) const {
    EXPECT_EQ(convert(arguments), status) << output();
    EXPECT_NE(output().find(message), std::string::npos) << output();
    const std::string text = output();
    EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1) << text;
  }
  std::vector<float> weights(const TensorSource& source, const std::string& name) const {
    std::vector<float> all;
    for_each_slab(source, name, [&](int64_t, std::span<const float> rows) {
      all.insert(all.end(), rows.begin(), rows.end());
    });
    return all;
  }
};

TEST_F(ConvertProgramTest, ACheckpointComesBackFromHuggingFaceBitByBit) {
  ASSERT_EQ(convert("export train hf --json export.json"), 0) << output();
  EXPECT_EQ(read_json("export.json")["architecture"], "LlamaForCausalLM");
  EXPECT_EQ(read_json("export.json")["vocab_size"], kItems + 1);
  ASSERT_EQ(convert("import hf back --tokenizer tokenizer.h5"), 0) << output();
  // The exported tokens are text to whoever reads them; the IDs come behind them.
  ASSERT_EQ(convert("import train weights"), 0) << output();
  EXPECT_EQ(convert("diff train weights --tolerance 0 --json diff.json"), 0) << output();
  EXPECT_EQ(read_json("diff.json")["identical"], true);
  EXPECT_EQ(convert("diff train hf --tolerance 0"), 0) << output();
  EXPECT_NE(output().find("identical"), std::string::npos);
  const auto before = open_checkpoint_tensors(folder / "train/checkpoints/step-00000030");
  const auto after = open_checkpoint_tensors(folder / "back");
  ASSERT_EQ(before->tensors().size(), after->tensors().size());
  for (const auto& [name, tensor] : before->tensors()) {
    std::vector<float> expected = weights(*before, name), actual = weights(*after, name);
    if (is_vocabulary_tensor(name)) {  // 41 tokens, then 41 new ones
      expected.resize(41 * tensor.row_size());
      actual.resize(41 * tensor.row_size());
    }
    EXPECT_EQ(expected, actual) << name;
  }
}

TEST_F(ConvertProgramTest, ExportsEverythingThatServingNeeds) {
  ASSERT_EQ(convert("export train hf"), 0) << output();
  const json config = read_json("hf/config.json");
  EXPECT_EQ(config["vocab_size"], kItems + 1);
  EXPECT_EQ(config["bos_token_id"], 0);
  EXPECT_EQ(config["max_position_embeddings"], 1024);  // training.max_sequence_tokens
  const json table = read_json("hf/semantic_ids.json");
  EXPECT_EQ(table["schema"], "mirabelle-semantic-ids");
  EXPECT_EQ(table["items"].size(), static_cast<size_t>(kItems));
  EXPECT_EQ(table["items"]["7"], json({7}));  // item 7 has code 6, behind the special token
  EXPECT_EQ(table["ranges"], json::parse(R"([{"name":"special","begin":0,"size":1},)"
                                         R"({"name":"level_0","begin":1,"size":40}])"));
  EXPECT_EQ(read_json("hf/tokenizer.json")["model"]["vocab"]["<level_0_39>"], 40);
  EXPECT_EQ(read_json("hf/special_tokens_map.json")["bos_token"], "<bos>");
  EXPECT_FALSE(exists("hf/model.safetensors.index.json"));
}

TEST_F(ConvertProgramTest, LargeModelsHaveSeveralFiles) {
  ASSERT_EQ(convert("export train one --dtype bfloat16"), 0) << output();
  ASSERT_EQ(convert("export train many --dtype bfloat16 --max-file-gib 0.000001"), 0) << output();
  EXPECT_FALSE(exists("many/model.safetensors"));
  const json index = read_json("many/model.safetensors.index.json");
  EXPECT_EQ(index["metadata"]["total_size"].get<int64_t>(),
            2 * index["metadata"]["total_parameters"].get<int64_t>());
  EXPECT_EQ(convert("diff one many --tolerance 0"), 0) << output();
  EXPECT_EQ(convert("diff one train --tolerance 1e-9"), 1) << output();
  EXPECT_EQ(convert("diff one train"), 0) << output();
  EXPECT_NE(output().find("different"), std::string::npos);
  // rounded to the nearest: half a unit of the 8th bit
  const auto exact = open_checkpoint_tensors(folder / "train/checkpoints/step-00000030");
  const auto rounded = open_hugging_face_tensors(folder / "many");
  const std::string name = "model.layers.0.mlp.up_proj.weight";
  const std::vector<float> a = weights(*exact, name), b = weights(*rounded, name);
  for (size_t i = 0; i < a.size(); ++i) EXPECT_LE(std::abs(a[i] - b[i]), std::abs(a[i]) / 256);
  EXPECT_EQ(rounded->info(name).dtype, "bfloat16");
}

TEST_F(ConvertProgramTest, AnImportedModelIsAnyProgramsCheckpoint) {
  ASSERT_EQ(convert("import " + (kFixtures / "qwen3").string() +
                    " imported --tokenizer tokenizer.h5 --json import.json"),
            0)
      << output();
  EXPECT_EQ(read_json("import.json")["new_tokens"], kItems + 1);
  EXPECT_EQ(read_json("import.json")["vocab_size"], 40 + kItems + 1);
  ASSERT_EQ(convert("inspect imported --json inspect.json"), 0) << output();
  EXPECT_NE(output().find("query_key_norm: true"), std::string::npos) << output();
  const json inspected = read_json("inspect.json");
  EXPECT_EQ(inspected["optimizer"], "none");
  EXPECT_EQ(inspected["items"], kItems);
  EXPECT_EQ(inspected["parameters"], 21200 + 2 * (kItems + 1) * 32);
  // it recommends, in any layout
  const std::string arguments =
      "--set evaluation.checkpoint=imported --set data.corpus=corpus --count 3 ";
  ASSERT_EQ(run("mirabelle-recommend", arguments + "--output one.jsonl"), 0) << output();
  ASSERT_EQ(run("mirabelle-recommend",
                arguments + "--output two.jsonl --set parallel.tensor_parallel_size=2", 2),
            0)
      << output();
  const std::string one = read_text_file(folder / "one.jsonl");
  EXPECT_EQ(std::count(one.begin(), one.end(), '\n'), kUsers);
  EXPECT_EQ(std::count(one.begin(), one.end(), '\n'), [&] {
    const std::string two = read_text_file(folder / "two.jsonl");
    return std::count(two.begin(), two.end(), '\n');
  }());
}

// The one tensor that may be there without being wanted, so that nothing knows its shape.
TEST_F(ConvertProgramTest, ComparesModelsWithAnEmptyHeadThatNobodyUses) {
  ASSERT_EQ(convert("export train hf"), 0) << output();
  const auto source = open_hugging_face_tensors(folder / "hf");
  std::vector<LogicalTensor> tensors = {{"lm_head.weight", {3, 0}}};
  std::vector<float> values;
  for (const auto& [name, tensor] : source->tensors()) {
    tensors.push_back({name, tensor.shape});
    const std::vector<float> all = weights(*source, name);
    values.insert(values.end(), all.begin(), all.end());
  }
  SafetensorsWriter writer(folder / "hf/model.safetensors", DType::kFloat32, tensors);
  writer.append(values);
  writer.close();
  EXPECT_EQ(convert("diff hf hf --tolerance 0"), 0) << output();
  EXPECT_NE(output().find("0 of 0"), std::string::npos) << output();
}

TEST_F(ConvertProgramTest, WritesLogitsForOtherPrograms) {
  ASSERT_EQ(convert("logits " + (kFixtures / "llama").string() + " logits.npy --tokens 3,1,39"), 0)
      << output();
  EXPECT_EQ(fs::file_size(folder / "logits.npy"), 128 + 3 * 40 * 4u);
  ASSERT_EQ(convert("logits train trained.npy --tokens 0,17"), 0) << output();
  ASSERT_EQ(convert("export train hf"), 0) << output();
  ASSERT_EQ(convert("logits hf exported.npy --tokens 0,17"), 0) << output();
  EXPECT_EQ(read_text_file(folder / "trained.npy"), read_text_file(folder / "exported.npy"));
  expect_refused("logits train x.npy --tokens 0,41", 2, "41 is not one of the 41 tokens");
}

TEST_F(ConvertProgramTest, RefusesWhatItCannotDo) {
  expect_refused("", 2, "wanted export, import, inspect, diff or logits");
  expect_refused("export nowhere hf", 2, "nowhere: neither a checkpoint nor a training output");
  expect_refused("export train corpus", 2, "corpus: exists, wanted a new folder");
  expect_refused("export train hf --dtype float64", 2, "float64");
  expect_refused("export train hf --max-file-gib 0", 2, "--max-file-gib");
  expect_refused("import corpus x", 3, "not a checkpoint's manifest");
  EXPECT_FALSE(exists("hf"));
  EXPECT_FALSE(exists("x"));
}

TEST_F(ConvertProgramTest, ADamagedModelLeavesNothingBehind) {
  ASSERT_EQ(convert("export train hf"), 0) << output();
  json config = read_json("hf/config.json");
  config["hidden_size"] = 32;
  write_text_file(folder / "hf/config.json", config.dump());
  expect_refused("import hf x", 3, "is [41, 16], wanted [41, 32] by the configuration");
  config["hidden_size"] = 16;
  config["num_hidden_layers"] = 0;
  write_text_file(folder / "hf/config.json", config.dump());
  expect_refused("import hf x", 3, "model.hidden_size, num_layers");
  write_text_file(folder / "hf/config.json", "{");
  expect_refused("import hf x", 3, "config.json");
  const fs::path file = folder / "train/checkpoints/step-00000030/tensors-00001-of-00001.h5";
  std::string bytes = read_text_file(file);
  bytes[bytes.size() - 5] ^= 1;
  write_text_file(file, bytes);
  EXPECT_EQ(convert("export train y"), 3);
  EXPECT_NE(output().find("SHA-256"), std::string::npos) << output();
  for (const auto& entry : fs::directory_iterator(folder.path())) {
    EXPECT_EQ(entry.path().filename().string().find("partial"), std::string::npos);
  }
  EXPECT_FALSE(exists("x"));
  EXPECT_FALSE(exists("y"));
}

}  // namespace
}  // namespace mirabelle
