// Runs on 1, 2 and 4 ranks: data parallelism must not change what is learned.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "mirabelle/core/copy.h"
#include "mirabelle/core/files.h"
#include "mirabelle/training/trainer.h"
#include "support/temporary_folder.h"
#include "support/tiny_corpus.h"
#include "support/tiny_model.h"

namespace mirabelle {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int64_t kItems = 30, kPaddedVocab = 64;

TransformerConfig model_config() {
  TransformerConfig config = testing::tiny_config();
  config.dropout = 0.2;
  return config;
}

/// The master weights of bfloat16 models are compared, which are float32.
constexpr double kTolerance = 2e-4;

/// The parameter is what the model is kept in.
class DataParallelTest : public ::testing::TestWithParam<DType> {
 protected:
  DataParallelTest() : world_(make_mpi_communicator()), self_(make_self_communicator()) {
    // one folder for all ranks, written by the first
    if (world_->rank() == 0) folder_ = std::make_unique<testing::TemporaryFolder>();
    path_ = broadcast_text(*world_, folder_ ? folder_->path().string() : "", 0);
    if (world_->rank() == 0) write_tiny_corpus(path_ / "corpus", 150, kItems, 1);
    world_->barrier();
  }
  ~DataParallelTest() override { world_->barrier(); }  // nobody removes the folder too early

  /// Trains from the state in the output folder to `max_steps`, and returns this rank's model; the
  /// corpus is drawn by every rank anew.
  Transformer train(const Communicator& group, const std::string& output, int64_t max_steps) const {
    TrainingConfig config;
    config.output = (path_ / output).string();
    config.max_steps = max_steps;
    config.schedule = "constant";
    config.warmup_steps = 3;
    config.micro_batch_tokens = 64;
    config.global_batch_tokens = 256;
    config.max_sequence_tokens = 20;
    config.validation_every_steps = 0;
    TokenTable tokens{0, 1, {}};
    for (int32_t item = 0; item < kItems; ++item) tokens.tokens.push_back(1 + item);
    const Corpus corpus(path_ / "corpus");
    Transformer model(model_config(), kItems + 1, kPaddedVocab, GetParam(), {64, 64, true},
                      Device::kCpu, model_share(config, {}, group.rank(), group.size()));
    BatchLoader loader(corpus, tokens, {.part_tokens = 64, .max_sequence_tokens = 20});
    const ParallelContext ranks(group, 1);
    Trainer(config, ParallelConfig(), model, loader, ranks, nullptr,
            path_ / "corpus" / "manifest.json")
        .run("");
    return model;
  }

  /// The weights that the last step of a training left, in float32.
  std::vector<float> trained_weights(const Communicator& group, const std::string& output,
                                     int64_t max_steps) const {
    train(group, output, max_steps);
    const ParameterLayout layout(model_config(), kPaddedVocab);
    std::vector<float> values(layout.num_elements());
    read_checkpoint_tensors(checkpoint_folder(path_ / output, max_steps), layout,
                            {.weights = view_of(values), .exp_avg = {}, .exp_avg_sq = {}}, group);
    return values;
  }

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

TEST_P(DataParallelTest, EqualsTheSerialRunOfTheSameGlobalBatch) {
  const std::string mine = "serial" + std::to_string(world_->rank());
  const auto serial = trained_weights(*self_, mine, 10);
  const auto parallel = trained_weights(*world_, "parallel", 10);
  EXPECT_LT(difference(parallel, serial), kTolerance);
  const auto fewer = trained_weights(*self_, mine + "fewer", 9);
  EXPECT_GT(difference(fewer, serial), 1e-3);  // a step makes more of a difference than that
}

TEST_P(DataParallelTest, AllRanksHoldTheSameBits) {
  const Transformer model = train(*world_, "parallel", 5);
  const TensorView& weights = model.weights();
  const Buffer of_root(weights.shape, weights.dtype);
  copy(of_root.view(), weights, Stream());
  world_->broadcast(of_root.view(), 0, Stream());
  int64_t num_different = std::memcmp(weights.data, of_root.data(), weights.bytes()) != 0;
  world_->all_reduce(view_of(&num_different, {1}), ReduceOp::kSum, Stream());
  EXPECT_EQ(num_different, 0);
}

TEST_P(DataParallelTest, ASerialRunGoesOnWhereRanksStopped) {
  train(*world_, "first", 5);
  const auto all = trained_weights(*world_, "all", 10);
  std::vector<float> resumed = all;
  if (world_->rank() == 0) {
    // a finished run of 5 steps, seen as an unfinished one of 10
    const fs::path manifest = checkpoint_folder(path_ / "first", 5) / "manifest.json";
    json edited = json::parse(read_text_file(manifest));
    edited["state"]["finished"] = false;
    write_text_file(manifest, edited.dump());
    resumed = trained_weights(*self_, "first", 10);
  }
  EXPECT_LT(difference(resumed, all), kTolerance);
}

INSTANTIATE_TEST_SUITE_P(DTypes, DataParallelTest,
                         ::testing::Values(DType::kFloat32, DType::kBFloat16),
                         [](const auto& info) { return std::string(to_string(info.param)); });

}  // namespace
}  // namespace mirabelle
