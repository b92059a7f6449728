#include "mirabelle/training/checkpoint.h"

#include <gtest/gtest.h>

#include <fstream>

#include "mirabelle/core/files.h"
#include "mirabelle/core/hdf5_file.h"
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

class CheckpointTest : public ::testing::Test {
 protected:
  CheckpointTest()
      : layout_(grouped_config(), 32),
        weights_({layout_.num_elements()}, DType::kFloat32),
        exp_avg_({layout_.num_elements()}, DType::kFloat32),
        exp_avg_sq_({layout_.num_elements()}, DType::kFloat32) {
    for (int64_t i = 0; i < layout_.num_elements(); ++i) {
      weights_.view().as<float>()[i] = static_cast<float>(i);
      exp_avg_.view().as<float>()[i] = static_cast<float>(-i);
      exp_avg_sq_.view().as<float>()[i] = static_cast<float>(2 * i);
    }
    write_text_file(folder_.path() / "tokenizer.h5", "the tokenizer");
    state_.step = 12;
    state_.cursor = {3, 4, 5};
    state_.tokens = 678;
    state_.seconds = 1.0 / 3;
    state_.best_ndcg = 0.1;
    state_.best_recall = 0.2;
    state_.best_step = 8;
  }

  fs::path write(const fs::path& output, int64_t step) {
    state_.step = step;
    const fs::path folder = checkpoint_folder(output, step);
    write_checkpoint(folder, state_, layout_,
                     {weights_.view(), exp_avg_.view(), exp_avg_sq_.view()}, "a: 1\n",
                     folder_.path() / "tokenizer.h5");
    return folder;
  }
  std::string refusal(const fs::path& folder, const ParameterLayout& layout) {
    const Buffer into({layout.num_elements()}, DType::kFloat32);
    try {
      read_checkpoint_tensors(folder, layout, {into.view(), into.view(), {}});
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kData);
      return error.what();
    }
    return "accepted";
  }

  testing::TemporaryFolder folder_;
  ParameterLayout layout_;
  Buffer weights_, exp_avg_, exp_avg_sq_;
  TrainingState state_;
};

TEST_F(CheckpointTest, GivesBackEveryBit) {
  const fs::path folder = write(folder_.path(), 12);
  const Buffer weights({layout_.num_elements()}, DType::kFloat32);
  const Buffer exp_avg({layout_.num_elements()}, DType::kFloat32);
  const Buffer exp_avg_sq({layout_.num_elements()}, DType::kFloat32);
  read_checkpoint_tensors(folder, layout_, {weights.view(), exp_avg.view(), exp_avg_sq.view()});
  for (int64_t i = 0; i < layout_.num_elements(); ++i) {
    ASSERT_EQ(weights.view().as<float>()[i], i);
    ASSERT_EQ(exp_avg.view().as<float>()[i], -i);
    ASSERT_EQ(exp_avg_sq.view().as<float>()[i], 2 * i);
  }
  const TrainingState state = read_training_state(folder);
  EXPECT_EQ(state.step, 12);
  EXPECT_EQ(state.cursor, (DataCursor{3, 4, 5}));
  EXPECT_EQ(state.tokens, 678);
  EXPECT_EQ(state.seconds, 1.0 / 3);
  EXPECT_EQ(state.best_ndcg, 0.1);
  EXPECT_EQ(state.best_recall, 0.2);
  EXPECT_EQ(state.best_step, 8);
  EXPECT_FALSE(state.finished);
  EXPECT_EQ(read_checkpoint_config(folder), "a: 1\n");
  EXPECT_EQ(read_text_file(folder / "tokenizer.h5"), "the tokenizer");
}

TEST_F(CheckpointTest, StoresLogicalTensorsInTheirOwnOrder) {
  const Hdf5File file = Hdf5File::open(write(folder_.path(), 1) / "weights.h5");
  const std::string layer = "model.layers.1.self_attn.";
  const int64_t hidden = 24, head_dim = 6, group = 2;
  const std::vector<float> query = file.read<float>(layer + "q_proj.weight");
  const std::vector<float> key = file.read<float>(layer + "k_proj.weight");
  const std::vector<float> value = file.read<float>(layer + "v_proj.weight");
  ASSERT_EQ(query.size(), 24u * 24);
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

TEST_F(CheckpointTest, RefusesAnEditedFile) {
  const fs::path folder = write(folder_.path(), 1);
  std::fstream file(folder / "weights.h5", std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(5000);
  file.put('x');
  file.close();
  const std::string message = refusal(folder, layout_);
  EXPECT_NE(message.find("weights.h5: its SHA-256"), std::string::npos) << message;
}

TEST_F(CheckpointTest, RefusesATruncatedFile) {
  const fs::path folder = write(folder_.path(), 1);
  fs::resize_file(folder / "optimizer.h5", 3000);
  const std::string message = refusal(folder, layout_);
  EXPECT_NE(message.find("optimizer.h5: its SHA-256"), std::string::npos) << message;
}

TEST_F(CheckpointTest, RefusesAnotherModel) {
  const fs::path folder = write(folder_.path(), 1);
  TransformerConfig wider = grouped_config();
  wider.ffn_hidden_size = 48;
  EXPECT_NE(refusal(folder, ParameterLayout(wider, 32)).find("gate_proj.weight is [40, 24]"),
            std::string::npos);
  TransformerConfig deeper = grouped_config();
  deeper.num_layers = 3;
  EXPECT_NE(refusal(folder, ParameterLayout(deeper, 32)).find("model.layers.2"), std::string::npos);
  TransformerConfig shallower = grouped_config();
  shallower.num_layers = 1;
  EXPECT_NE(refusal(folder, ParameterLayout(shallower, 32)).find("holds 20 tensors"),
            std::string::npos);
}

TEST_F(CheckpointTest, RefusesAnotherVersionAndOtherFolders) {
  const fs::path folder = write(folder_.path(), 1);
  std::string manifest = read_text_file(folder / "manifest.json");
  const std::string version = "\"version\": 1";
  write_text_file(folder / "manifest.json",
                  manifest.replace(manifest.find(version), version.size(), "\"version\": 2"));
  try {
    read_training_state(folder);
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("version 2, wanted 1"), std::string::npos);
  }
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
}

TEST_F(CheckpointTest, AMissingTokenizerLeavesNothingBehind) {
  const fs::path folder = checkpoint_folder(folder_.path(), 1);
  EXPECT_ANY_THROW(write_checkpoint(folder, state_, layout_,
                                    {weights_.view(), exp_avg_.view(), exp_avg_sq_.view()}, "",
                                    folder_.path() / "no tokenizer"));
  EXPECT_FALSE(fs::exists(folder));
  EXPECT_TRUE(fs::is_empty(folder.parent_path()));
}

}  // namespace
}  // namespace mirabelle
