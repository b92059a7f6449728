#include "mirabelle/training/checkpoint.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "mirabelle/core/files.h"
#include "mirabelle/core/hdf5_file.h"
#include "support/errors.h"
#include "support/logical_values.h"
#include "support/temporary_folder.h"
#include "support/tiny_model.h"

namespace mirabelle {
namespace {

namespace fs = std::filesystem;

TransformerConfig grouped_config() {
  TransformerConfig config = testing::tiny_config();
  config.num_kv_heads = 2;
  return config;
}

constexpr const char* kTensorFile = "tensors-00001-of-00001.h5";

class CheckpointTest : public ::testing::Test {
 protected:
  CheckpointTest() : layout_(grouped_config(), 32), world_(make_self_communicator()) {
    write_text_file(tokenizer_, "the tokenizer");
    state_.step = 12;
    state_.cursor = {3, 4, 5};
    state_.tokens = 678;
    state_.loss = 2.0 / 3;
    state_.seconds = 1.0 / 3;
    state_.best_ndcg = 0.1;
    state_.best_recall = 0.2;
    state_.prefix_weights = {0.1, 1.0 / 3, 1 - 0.1 - 1.0 / 3};
    state_.best_step = 8;
  }

  /// The values of these ranges, one after the other.
  static void fill(const CheckpointTensors& into, const ParameterLayout& layout,
                   const std::vector<FlatRange>& owned) {
    const auto copy = [&](const TensorView& to, float scale) {
      const std::vector<float> flat = testing::logical_values(layout, scale);
      float* next = to.as<float>();
      for (const FlatRange& range : owned) {
        next = std::copy(flat.begin() + range.begin, flat.begin() + range.end, next);
      }
    };
    copy(into.weights, 1);
    copy(into.exp_avg, -1);
    copy(into.exp_avg_sq, 0.5);
  }
  fs::path write(const fs::path& folder, const ParameterLayout& layout,
                 const std::vector<FlatRange>& owned) {
    CheckpointWriter writer(*world_, layout, owned, tokenizer_);
    fill(writer.prepare(), layout, owned);
    writer.start(folder, state_, "a: 1\n");
    writer.commit();
    return folder;
  }
  fs::path write(const fs::path& output, int64_t step) {
    state_.step = step;
    return write(checkpoint_folder(output, step), layout_, whole(layout_));
  }
  static std::vector<FlatRange> whole(const ParameterLayout& layout) {
    return {{0, layout.num_elements()}};
  }

  void read(const fs::path& folder, const ParameterLayout& layout,
            const CheckpointTensors& tensors) {
    read_checkpoint_tensors(folder, layout, tensors, *world_);
  }
  void expect_to_read_all(const fs::path& folder, const ParameterLayout& layout) {
    std::vector<float> weights(layout.num_elements()), exp_avg = weights, exp_avg_sq = weights;
    read(folder, layout, {view_of(weights), view_of(exp_avg), view_of(exp_avg_sq)});
    EXPECT_EQ(weights, testing::logical_values(layout));
    EXPECT_EQ(exp_avg, testing::logical_values(layout, -1));
    EXPECT_EQ(exp_avg_sq, testing::logical_values(layout, 0.5));
  }
  void expect_refusal(const std::string& part, const fs::path& folder,
                      const ParameterLayout& layout) {
    const Buffer into({layout.num_elements()}, DType::kFloat32);
    testing::expect_error(ErrorKind::kData, part, [&] {
      read(folder, layout, {into.view(), into.view(), {}});
    });
  }
  std::vector<float> stored(const fs::path& folder, const std::string& name) {
    return Hdf5File::open(folder / kTensorFile).read<float>(name);
  }

  testing::TemporaryFolder folder_;
  const fs::path tokenizer_ = folder_ / "tokenizer.h5";
  ParameterLayout layout_;
  std::unique_ptr<Communicator> world_;
  TrainingState state_;
};

TEST_F(CheckpointTest, GivesBackEveryBit) {
  const fs::path folder = write(folder_.path(), 12);
  expect_to_read_all(folder, layout_);
  const TrainingState state = read_training_state(folder);
  EXPECT_EQ(state.step, 12);
  EXPECT_EQ(state.cursor, (DataCursor{3, 4, 5}));
  EXPECT_EQ(state.tokens, 678);
  EXPECT_EQ(state.loss, 2.0 / 3);
  EXPECT_EQ(state.seconds, 1.0 / 3);
  EXPECT_EQ(state.best_ndcg, 0.1);
  EXPECT_EQ(state.best_recall, 0.2);
  EXPECT_EQ(state.prefix_weights, state_.prefix_weights);
  EXPECT_EQ(state.best_step, 8);
  EXPECT_FALSE(state.finished);
  EXPECT_EQ(read_checkpoint_config(folder), "a: 1\n");
  EXPECT_EQ(read_text_file(folder / "tokenizer.h5"), "the tokenizer");
}

TEST_F(CheckpointTest, SaysWhoseMomentsItHas) {
  state_.optimizer = "muon";
  const fs::path folder = write(folder_.path(), 1);
  EXPECT_EQ(read_training_state(folder).optimizer, "muon");
  auto manifest = nlohmann::json::parse(read_text_file(folder / "manifest.json"));
  manifest["state"].erase("optimizer");  // as before there was another
  write_text_file(folder / "manifest.json", manifest.dump());
  EXPECT_EQ(read_training_state(folder).optimizer, "adamw");
}

TEST_F(CheckpointTest, ReadsOnlyWhatIsWanted) {
  const fs::path folder = write(folder_.path(), 1);
  std::vector<float> exp_avg(layout_.num_elements());
  read(folder, layout_, {.weights = {}, .exp_avg = view_of(exp_avg), .exp_avg_sq = {}});
  EXPECT_EQ(exp_avg, testing::logical_values(layout_, -1));
}

TEST_F(CheckpointTest, StoresLogicalTensorsInTheirOwnOrder) {
  CheckpointWriter writer(*world_, layout_, whole(layout_), tokenizer_);
  float* weights = writer.prepare().weights.as<float>();
  for (int64_t i = 0; i < layout_.num_elements(); ++i) weights[i] = static_cast<float>(i);
  writer.start(folder_ / "checkpoint", state_, "");
  writer.commit();
  const Hdf5File file = Hdf5File::open(folder_ / "checkpoint" / kTensorFile);
  const std::string layer = "weights/model.layers.1.self_attn.";
  const int64_t hidden = 24, head_dim = 6, group = 2;
  EXPECT_EQ(file.shape(layer + "q_proj.weight"), (Shape{24, 24}));
  EXPECT_EQ(file.shape(layer + "o_proj.weight"), (Shape{24, 24}));
  EXPECT_EQ(file.shape("weights/model.norm.weight"), Shape{24});
  EXPECT_EQ(file.shape("exp_avg_sq/model.embed_tokens.weight"), (Shape{32, 24}));
  const std::vector<float> query = file.read<float>(layer + "q_proj.weight");
  const std::vector<float> key = file.read<float>(layer + "k_proj.weight");
  const std::vector<float> value = file.read<float>(layer + "v_proj.weight");
  ASSERT_EQ(key.size(), 12u * 24);
  // storage: per key/value head its two query heads, then the key, then the value
  const int64_t start = layout_.layers()[1].qkv;
  const int64_t second_head = start + (group + 2) * head_dim * hidden;
  EXPECT_EQ(query[0], start);
  EXPECT_EQ(query[group * head_dim * hidden], second_head);
  EXPECT_EQ(key[0], start + group * head_dim * hidden);
  EXPECT_EQ(key[head_dim * hidden], second_head + group * head_dim * hidden);
  EXPECT_EQ(value[head_dim * hidden + 1], second_head + (group + 1) * head_dim * hidden + 1);
}

TEST_F(CheckpointTest, TheOrderOfOwnedRangesDoesNotMatter) {
  const int64_t cut = 1001, later_cut = 1002;  // in the middle of rows
  const fs::path folder = write(folder_ / "checkpoint", layout_,
                                {{later_cut, layout_.num_elements()}, {cut, later_cut}, {0, cut}});
  expect_to_read_all(folder, layout_);
  const Hdf5File file = Hdf5File::open(folder / kTensorFile);
  EXPECT_EQ(file.shape("weights/model.layers.0.self_attn.q_proj.weight"), (Shape{24, 24}));
}

TEST_F(CheckpointTest, DescribesTheRegionsOfASplitModel) {
  // four shards and two key/value heads: shards 0 and 1 hold the first, of which 1 has a copy
  const ParameterLayout first_half(
      grouped_config(), 32, {.num_shards = 4, .tensor_parallel_size = 2, .flat_multiple = 7});
  const fs::path folder = write(folder_ / "checkpoint", first_half, whole(first_half));
  const Hdf5File file = Hdf5File::open(folder / kTensorFile);
  const auto index = nlohmann::json::parse(file.read_text("index"));
  const auto expect_regions = [&](const std::string& name, const std::string& shape,
                                  const std::string& regions) {
    EXPECT_EQ(index.at(name).at("shape").dump(), shape);
    EXPECT_EQ(index.at(name).at("regions").dump(), regions) << name;
  };
  const std::string layer = "model.layers.0.";
  expect_regions("model.embed_tokens.weight", "[32,24]", "[[0,32,0,24,0,384]]");
  expect_regions(layer + "self_attn.q_proj.weight", "[24,24]", "[[0,24,0,24,0,288]]");
  expect_regions(layer + "self_attn.k_proj.weight", "[12,24]", "[[0,12,0,24,0,144]]");
  expect_regions(layer + "self_attn.o_proj.weight", "[24,24]",
                 "[[0,24,0,6,0,144],[0,24,6,12,0,144]]");
  expect_regions(layer + "input_layernorm.weight", "[24]", "[[0,24,0,1,0,24]]");
  EXPECT_EQ(file.shape("weights/" + layer + "self_attn.o_proj.weight"), Shape{288});
  EXPECT_EQ(file.shape("weights/" + layer + "input_layernorm.weight"), Shape{24});
  expect_refusal("of weights/model.embed_tokens.weight there are 384 elements, wanted 768", folder,
                 layout_);
  expect_to_read_all(folder, first_half);  // with the copies
}

TEST_F(CheckpointTest, ManyShardsOnOneRankAreReadAsOne) {
  const ParameterLayout shards(grouped_config(), 32, {.num_shards = 4, .flat_multiple = 7});
  const fs::path folder = write(folder_ / "checkpoint", shards, whole(shards));
  expect_to_read_all(folder, shards);
  expect_to_read_all(folder, layout_);
  expect_to_read_all(write(folder_ / "another", layout_, whole(layout_)), shards);
}

TEST_F(CheckpointTest, LongTensorsAreWrittenAndReadInSlices) {
  TransformerConfig config = grouped_config();
  config.ffn_hidden_size = 60000;  // a slice is 2^20 elements: 43690 rows of 24, or 17 of 60000
  config.num_layers = 1;
  const int64_t vocabulary = 64000;
  const ParameterLayout one(config, vocabulary), two(config, vocabulary, {.num_shards = 2});
  const auto expect_equal = [&](const ParameterLayout& layout, const fs::path& folder) {
    std::vector<float> weights(layout.num_elements());
    read(folder, layout, {.weights = view_of(weights), .exp_avg = {}, .exp_avg_sq = {}});
    EXPECT_TRUE(weights == testing::logical_values(layout));
  };
  const fs::path of_one =
      write(folder_ / "one", one, {{1500000, one.num_elements()}, {0, 1500000}});
  const fs::path of_two =
      write(folder_ / "two", two, {{1500000, two.num_elements()}, {0, 1500000}});
  expect_equal(one, of_one);
  expect_equal(two, of_one);
  expect_equal(one, of_two);
}

TEST_F(CheckpointTest, WritesInTheBackground) {
  CheckpointWriter writer(*world_, layout_, whole(layout_), tokenizer_);
  EXPECT_FALSE(writer.is_pending());
  EXPECT_FALSE(writer.is_written());
  writer.commit();  // nothing
  std::vector<float> training = testing::logical_values(layout_);
  std::copy(training.begin(), training.end(), writer.prepare().weights.as<float>());
  const fs::path first = folder_ / "first", second = folder_ / "second";
  writer.start(first, state_, "");
  std::fill(training.begin(), training.end(), 0.0f);  // the next step
  state_.step = 99;
  EXPECT_TRUE(writer.is_pending());
  EXPECT_FALSE(fs::exists(first));
  testing::expect_error("is still being written", [&] { writer.start(second, state_, ""); });
  while (!writer.is_written()) std::this_thread::yield();
  EXPECT_TRUE(writer.is_pending());
  EXPECT_FALSE(fs::exists(first));
  const CheckpointTensors memory = writer.prepare();
  EXPECT_FALSE(writer.is_pending());
  EXPECT_FALSE(writer.is_written());
  EXPECT_EQ(read_training_state(first).step, 12);
  read(first, layout_, {.weights = view_of(training), .exp_avg = {}, .exp_avg_sq = {}});
  EXPECT_EQ(training, testing::logical_values(layout_));

  memory.weights.as<float>()[0] = 5;
  writer.start(second, state_, "");
  writer.commit();
  EXPECT_EQ(stored(second, "weights/model.embed_tokens.weight")[0], 5);
  EXPECT_EQ(stored(first, "weights/model.embed_tokens.weight")[0], 1);
}

TEST_F(CheckpointTest, WithoutACommitNothingIsLeft) {
  const fs::path folder = folder_ / "run" / "checkpoint";
  {
    CheckpointWriter writer(*world_, layout_, whole(layout_), tokenizer_);
    writer.prepare();
    writer.start(folder, state_, "");
  }
  EXPECT_TRUE(fs::is_empty(folder.parent_path()));
}

TEST_F(CheckpointTest, ReplacesWhatAKilledRunLeft) {
  const fs::path folder = checkpoint_folder(folder_.path(), 1);
  write_text_file(fs::path(folder.string() + ".partial") / "tensors-00002-of-00002.h5", "junk");
  write(folder_.path(), 1);
  EXPECT_FALSE(fs::exists(folder.string() + ".partial"));
  EXPECT_FALSE(fs::exists(folder / "tensors-00002-of-00002.h5"));
}

TEST_F(CheckpointTest, RefusesAnEditedFile) {
  const fs::path folder = write(folder_.path(), 1);
  std::fstream file(folder / kTensorFile, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(5000);
  file.put('x');
  file.close();
  expect_refusal(std::string(kTensorFile) + ": its SHA-256", folder, layout_);
}

TEST_F(CheckpointTest, RefusesATruncatedFile) {
  const fs::path folder = write(folder_.path(), 1);
  fs::resize_file(folder / kTensorFile, 3000);
  expect_refusal(std::string(kTensorFile) + ": its SHA-256", folder, layout_);
}

TEST_F(CheckpointTest, RefusesAMissingFile) {
  for (const char* name : {kTensorFile, "config.yaml", "tokenizer.h5", "manifest.json"}) {
    const fs::path folder = write(folder_ / "without" / name, 1);
    fs::remove(folder / name);
    expect_refusal(std::string(name) + ": cannot read", folder, layout_);
  }
}

TEST_F(CheckpointTest, IgnoresFilesThatAreNotItsOwn) {
  const fs::path folder = write(folder_.path(), 1);
  write_text_file(folder / "tensors-00002-of-00002.h5", "junk");
  expect_to_read_all(folder, layout_);
}

TEST_F(CheckpointTest, RefusesFilesThatAreNotInTheManifest) {
  const fs::path folder = write(folder_.path(), 1);
  auto manifest = nlohmann::json::parse(read_text_file(folder / "manifest.json"));
  const auto write_manifest = [&] { write_text_file(folder / "manifest.json", manifest.dump()); };
  manifest["sha256"].erase(kTensorFile);
  write_manifest();
  expect_refusal(std::string(kTensorFile) + ": its SHA-256", folder, layout_);
  manifest["tensor_files"] = nlohmann::json::array();
  write_manifest();
  expect_refusal("there are 0 elements", folder, layout_);
  manifest["tensor_files"] = "none";
  write_manifest();
  expect_refusal("manifest.json: ", folder, layout_);
}

TEST_F(CheckpointTest, RefusesAnIndexThatMakesNoSense) {
  const fs::path folder = write(folder_.path(), 1);
  auto manifest = nlohmann::json::parse(read_text_file(folder / "manifest.json"));
  const auto expect_refusal_of = [&](const std::string& index, const std::string& part) {
    Hdf5File file = Hdf5File::create(folder / kTensorFile);
    file.write_text("index", index);
    file.close();
    manifest["sha256"][kTensorFile] = sha256_of_file(folder / kTensorFile);
    write_text_file(folder / "manifest.json", manifest.dump());
    expect_refusal(part, folder, layout_);
  };
  const std::string file = std::string(kTensorFile) + ": dataset ";
  const auto norm = [](const std::string& shape, const std::string& region) {
    return R"({"model.norm.weight": {"shape": [)" + shape + R"(], "regions": [[)" + region + "]]}}";
  };
  expect_refusal_of("{", file + "index: ");
  expect_refusal_of(R"({"model.norm.weight": {}})", file + "index: ");
  expect_refusal_of(norm("24", "0, 24, 0, 1, 0"), file + "index: ");
  expect_refusal_of(norm("", "0, 24, 0, 1, 0, 24"), "has 0 axes, wanted 1 or 2");
  expect_refusal_of(norm("2, 3, 4", "0, 24, 0, 1, 0, 24"), "has 3 axes");
  for (const char* region : {"0,25,0,1,0,24", "-1,24,0,1,0,24", "0,24,0,2,0,24", "0,24,1,1,0,0",
                             "0,24,0,1,0,25", "0,24,0,1,5,5", "24,0,0,1,0,24"}) {
    expect_refusal_of(norm("24", region),
                      "model.norm.weight of shape [24] has no region [" + std::string(region));
  }
  for (const char* shape : {"0", "-24", "4611686018427387904, 4"}) {
    expect_refusal_of(norm(shape, "0,24,0,1,0,24"), "has the shape [");
  }
  expect_refusal_of(norm("24", "0,24,0,1,0,24],[0,24,0,1,0,24"),
                    "the regions hold more than the 24 elements of the tensor");
  expect_refusal_of(norm("24", "0,24,0,1,0,24"), file + "weights/model.norm.weight: missing");
}

TEST_F(CheckpointTest, RefusesAManifestWithWrongFields) {
  const fs::path folder = write(folder_.path(), 1);
  const auto good = nlohmann::json::parse(read_text_file(folder / "manifest.json"));
  const auto expect_refusal_of = [&](const std::string& pointer, const nlohmann::json& value,
                                     const std::string& part) {
    auto manifest = good;
    manifest[nlohmann::json::json_pointer(pointer)] = value;
    write_text_file(folder / "manifest.json", manifest.dump());
    testing::expect_error(ErrorKind::kData, "manifest.json: " + part,
                          [&] { read_training_state(folder); });
  };
  expect_refusal_of("/schema", 7, "\"schema\" is 7, wanted a string");
  expect_refusal_of("/version", "2", "\"version\" is \"2\", wanted an integer");
  expect_refusal_of("/state", nlohmann::json::array(), "state: is [], wanted an object");
  expect_refusal_of("/state/step", 1.5, "state: \"step\" is 1.5, wanted an integer");
  expect_refusal_of("/state/cursor/block", -1, "state: holds the count -1");
  expect_refusal_of("/state/finished", 1, "state: \"finished\" is 1, wanted true or false");
  expect_refusal_of("/state/prefix_weights", {1, "x"}, "state: \"prefix_weights\" is [1,\"x\"]");
  expect_refusal_of("/tensor_files", {"../tensors.h5"}, "tensor_files holds \"../tensors.h5\"");
  expect_refusal_of("/sha256/config.yaml", nullptr, "sha256 of \"config.yaml\" is null");
  write_text_file(folder / "manifest.json", std::string(1 << 16, '['));
  testing::expect_error(ErrorKind::kData, "nested deeper", [&] { read_training_state(folder); });
}

TEST_F(CheckpointTest, RefusesABestMarkerThatLeadsElsewhere) {
  const fs::path output = folder_.path() / "run";
  write(output, 9);
  for (const char* name : {"../../other", "step-1/../..", "", "best"}) {
    write_text_file(output / "checkpoints" / "best", name);
    testing::expect_error(ErrorKind::kData, "best: names no checkpoint",
                          [&] { find_checkpoint(output); });
  }
}

TEST_F(CheckpointTest, RefusesAnotherModel) {
  const fs::path folder = write(folder_.path(), 1);
  TransformerConfig wider = grouped_config();
  wider.ffn_hidden_size = 48;
  expect_refusal("down_proj.weight is [24, 40], the configuration wants [24, 48]", folder,
                 ParameterLayout(wider, 32));
  TransformerConfig deeper = grouped_config();
  deeper.num_layers = 3;
  expect_refusal("of weights/model.layers.2.", folder, ParameterLayout(deeper, 32));
  TransformerConfig shallower = grouped_config();
  shallower.num_layers = 1;
  expect_refusal("holds 20 tensors, the configuration wants 11", folder,
                 ParameterLayout(shallower, 32));
}

TEST_F(CheckpointTest, RefusesAnotherVersionAndOtherFolders) {
  const fs::path folder = write(folder_.path(), 1);
  std::string manifest = read_text_file(folder / "manifest.json");
  const std::string version = "\"version\": 2";
  write_text_file(folder / "manifest.json",
                  manifest.replace(manifest.find(version), version.size(), "\"version\": 1"));
  testing::expect_error(ErrorKind::kData, "version 1, wanted 2",
                        [&] { read_training_state(folder); });
  expect_refusal("version 1, wanted 2", folder, layout_);
  write_text_file(folder / "manifest.json", "[1, 2");
  EXPECT_THROW(read_training_state(folder), Error);
  EXPECT_THROW(read_training_state(folder_.path()), Error);
}

TEST_F(CheckpointTest, FindsTheBestElseTheNewest) {
  const fs::path output = folder_.path() / "run";
  EXPECT_FALSE(newest_checkpoint(output).has_value());
  EXPECT_THROW(find_checkpoint(output), Error);
  EXPECT_THROW(find_checkpoint(""), Error);
  write(output, 9);
  write(output, 10);
  write(output, 200);
  fs::create_directories(output / "checkpoints" / "step-00000300.partial");
  EXPECT_EQ(*newest_checkpoint(output), checkpoint_folder(output, 200));
  EXPECT_EQ(find_checkpoint(output), checkpoint_folder(output, 200));
  mark_best_checkpoint(output, 9);
  EXPECT_EQ(find_checkpoint(output), checkpoint_folder(output, 9));
  EXPECT_EQ(find_checkpoint(checkpoint_folder(output, 10)), checkpoint_folder(output, 10));
  remove_old_checkpoints(output, 1);
  EXPECT_TRUE(fs::exists(checkpoint_folder(output, 9)));
  EXPECT_FALSE(fs::exists(checkpoint_folder(output, 10)));
  EXPECT_TRUE(fs::exists(checkpoint_folder(output, 200)));
  remove_partial_checkpoints(output);
  EXPECT_FALSE(fs::exists(output / "checkpoints" / "step-00000300.partial"));
  expect_to_read_all(checkpoint_folder(output, 9), layout_);
  expect_to_read_all(checkpoint_folder(output, 200), layout_);
}

TEST_F(CheckpointTest, ARunIsResumedUntilItHasItsSummary) {
  const fs::path output = folder_.path() / "run", summary = output / "summary.json";
  EXPECT_FALSE(resumable_checkpoint(output).has_value());
  write(output, 9);
  EXPECT_EQ(resumable_checkpoint(output), checkpoint_folder(output, 9));
  write_text_file(summary, "of a run that was out of time");
  EXPECT_EQ(resumable_checkpoint(output), checkpoint_folder(output, 9));
  state_.finished = true;
  write(output, 10);
  EXPECT_FALSE(resumable_checkpoint(output).has_value());
  fs::remove(summary);
  EXPECT_EQ(resumable_checkpoint(output), checkpoint_folder(output, 10));
}

TEST_F(CheckpointTest, AMissingTokenizerLeavesNothingBehind) {
  const fs::path folder = checkpoint_folder(folder_.path(), 1);
  fs::remove(tokenizer_);
  testing::expect_error(ErrorKind::kData, "tokenizer.h5: cannot copy",
                        [&] { write(folder, layout_, whole(layout_)); });
  EXPECT_TRUE(fs::is_empty(folder.parent_path()));
}

TEST_F(CheckpointTest, GoesOnAfterAnError) {
  CheckpointWriter writer(*world_, layout_, whole(layout_), tokenizer_);
  fill(writer.prepare(), layout_, whole(layout_));
  testing::expect_error("cannot create", [&] { writer.start(tokenizer_ / "a" / "b", state_, ""); });
  EXPECT_FALSE(writer.is_pending());
  fs::remove(tokenizer_);
  writer.start(folder_ / "checkpoint", state_, "");
  testing::expect_error(ErrorKind::kData, "cannot copy", [&] { writer.commit(); });
  EXPECT_FALSE(writer.is_pending());
  write_text_file(tokenizer_, "the tokenizer");
  writer.start(folder_ / "checkpoint", state_, "");
  writer.commit();
  expect_to_read_all(folder_ / "checkpoint", layout_);
}

}  // namespace
}  // namespace mirabelle
