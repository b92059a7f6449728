// Runs on 1, 2 and 4 ranks: data parallelism must not change what is learned.

#include <gtest/gtest.h>

#include <cmath>

#include "mirabelle/core/files.h"
#include "mirabelle/training/trainer.h"
#include "support/temporary_folder.h"
#include "support/tiny_corpus.h"
#include "support/tiny_model.h"

namespace mirabelle {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int64_t kItems = 30;

/// The weights after some steps from the state in `output`; the corpus is drawn by every rank anew.
std::vector<float> train(const Communicator& group, const fs::path& corpus_folder,
                         const fs::path& output, int64_t max_steps) {
  TrainingConfig config;
  config.output = output.string();
  config.max_steps = max_steps;
  config.schedule = "constant";
  config.warmup_steps = 3;
  config.micro_batch_tokens = 64;
  config.global_batch_tokens = 256;
  config.max_sequence_tokens = 20;
  config.validation_every_steps = 0;
  TransformerConfig model_config = testing::tiny_config();
  model_config.dropout = 0.2;
  ParallelConfig parallel;

  TokenTable tokens{0, 1, {}};
  for (int32_t item = 0; item < kItems; ++item) tokens.tokens.push_back(1 + item);
  const Corpus corpus(corpus_folder);
  Transformer model(model_config, kItems + 1, 64, DType::kFloat32, {64, 64, true});
  BatchLoader loader(corpus, tokens, {.part_tokens = 64, .max_sequence_tokens = 20});
  Trainer trainer(config, parallel, model, loader, group, nullptr, corpus_folder / "manifest.json");
  trainer.run("");
  const float* first = model.weights().as<float>();
  return {first, first + model.weights().num_elements()};
}

class DataParallelTest : public ::testing::Test {
 protected:
  DataParallelTest() : world_(make_mpi_communicator()), self_(make_self_communicator()) {
    // one folder for all ranks, written by the first
    if (world_->rank() == 0) folder_ = std::make_unique<testing::TemporaryFolder>();
    path_ = broadcast_text(*world_, folder_ ? folder_->path().string() : "", 0);
    if (world_->rank() == 0) write_tiny_corpus(path_ / "corpus", 150, kItems, 1);
    world_->barrier();
  }
  ~DataParallelTest() override { world_->barrier(); }  // nobody removes the folder too early

  /// Largest difference over ranks.
  double difference(const std::vector<float>& a, const std::vector<float>& b) {
    double worst = a.size() == b.size() ? 0 : INFINITY;
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
      worst = std::max(worst, static_cast<double>(std::abs(a[i] - b[i])));
    }
    world_->all_reduce(view_of(&worst, {1}), ReduceOp::kMax, Stream());
    return worst;
  }

  std::unique_ptr<Communicator> world_, self_;
  std::unique_ptr<testing::TemporaryFolder> folder_;
  fs::path path_;
};

TEST_F(DataParallelTest, EqualsTheSerialRunOfTheSameGlobalBatch) {
  const std::string mine = "serial" + std::to_string(world_->rank());
  const auto serial = train(*self_, path_ / "corpus", path_ / mine, 10);
  const auto parallel = train(*world_, path_ / "corpus", path_ / "parallel", 10);
  EXPECT_LT(difference(parallel, serial), 2e-4);
  const auto fewer = train(*self_, path_ / "corpus", path_ / (mine + "fewer"), 9);
  EXPECT_GT(difference(fewer, serial), 1e-3);  // a step makes more of a difference than that
}

TEST_F(DataParallelTest, AllRanksHoldTheSameBits) {
  const auto weights = train(*world_, path_ / "corpus", path_ / "parallel", 5);
  std::vector<float> of_root = weights;
  world_->broadcast(view_of(of_root), 0, Stream());
  EXPECT_EQ(difference(weights, of_root), 0);
}

TEST_F(DataParallelTest, ASerialRunGoesOnWhereRanksStopped) {
  train(*world_, path_ / "corpus", path_ / "first", 5);
  const auto all = train(*world_, path_ / "corpus", path_ / "all", 10);
  std::vector<float> resumed = all;
  if (world_->rank() == 0) {
    // a finished run of 5 steps, seen as an unfinished one of 10
    const fs::path manifest = checkpoint_folder(path_ / "first", 5) / "manifest.json";
    json edited = json::parse(read_text_file(manifest));
    edited["state"]["finished"] = false;
    write_text_file(manifest, edited.dump());
    resumed = train(*self_, path_ / "corpus", path_ / "first", 10);
  }
  EXPECT_LT(difference(resumed, all), 2e-4);
}

}  // namespace
}  // namespace mirabelle
