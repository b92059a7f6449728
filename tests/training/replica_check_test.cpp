// Runs on 1, 2 and 4 ranks: copies of a parameter that differ are found, and whose they are.

#include "mirabelle/training/replica_check.h"

#include <gtest/gtest.h>

#include <cstring>

#include "mirabelle/core/files.h"
#include "mirabelle/training/trainer.h"
#include "support/temporary_folder.h"
#include "support/tiny_corpus.h"
#include "support/tiny_model.h"

namespace mirabelle {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kItems = 30, kPaddedVocab = 64, kHeadDim = 6;

/// Four shards hold two key/value heads: each twice.
TransformerConfig model_config() {
  TransformerConfig config = testing::tiny_config();
  config.num_kv_heads = 2;
  return config;
}

TrainingConfig training_config() {
  TrainingConfig config;
  config.max_steps = 10;
  config.micro_batch_tokens = 44;
  config.global_batch_tokens = 4 * 44;
  config.max_sequence_tokens = 20;
  config.reproducible = true;  // four shards, whatever the layout
  return config;
}

/// The parameter is tensor_parallel_size; the other ranks are data-parallel.
class ReplicaCheckTest : public ::testing::TestWithParam<int64_t> {
 protected:
  ReplicaCheckTest() : world_(make_mpi_communicator()) {
    parallel_.tensor_parallel_size = tensor();
  }
  ~ReplicaCheckTest() override { world_->barrier(); }
  void SetUp() override {
    if (size() % tensor() != 0) GTEST_SKIP() << "needs " << tensor() << " ranks";
    ranks_ = std::make_unique<ParallelContext>(*world_, tensor());
  }

  int64_t tensor() const { return GetParam(); }
  int64_t size() const { return world_->size(); }

  Transformer make_model(const TrainingConfig& config) const {
    Transformer model(model_config(), kItems + 1, kPaddedVocab, DType::kFloat32,
                      Trainer::model_limits(config, parallel_, size()), Device::kCpu,
                      model_share(config, parallel_, world_->rank(), size()), &ranks_->tensor());
    initialize_weights(model.weights(), model.layout(), model_config(), model.vocab_size(), 3);
    return model;
  }

  /// Of the `copy`-th copy of the piece of a tensor that this rank holds, which begins at that row.
  static float& last_element(const Transformer& model, const std::string& name, int64_t row_begin,
                             int64_t copy = 0) {
    for (const LogicalPiece& piece : model.layout().pieces()) {
      if (piece.name != name || piece.row_begin != row_begin || copy-- > 0) continue;
      return model.weights().as<float>()[piece.offset + piece.num_elements() - 1];
    }
    throw_error(ErrorKind::kOther, "no such piece of ", name);
  }

  /// What is found if `rank` changes the lowest bit of one element of that piece.
  std::string found_after_change(int64_t rank, const std::string& name, int64_t row_begin = 0,
                                 int64_t copy = 0) const {
    const Transformer model = make_model(training_config());
    if (world_->rank() == rank) {
      float& value = last_element(model, name, row_begin, copy);
      int32_t bits;
      std::memcpy(&bits, &value, sizeof bits);
      bits ^= 1;
      std::memcpy(&value, &bits, sizeof bits);
    }
    return find_different_replicas(model, *world_, Stream());
  }

  /// Every rank must have found the same.
  void expect_on_all_ranks(const std::string& found, const std::string& expected) const {
    for (const std::string& text : all_gather_texts(*world_, found)) EXPECT_EQ(text, expected);
  }
  static std::string differs(const std::string& what, int64_t rank) {
    return what + " is not the same on rank " + std::to_string(rank);
  }

  std::unique_ptr<Communicator> world_;
  ParallelConfig parallel_;
  std::unique_ptr<ParallelContext> ranks_;
};

TEST_P(ReplicaCheckTest, EqualCopiesAreFine) {
  const Transformer model = make_model(training_config());
  expect_on_all_ranks(find_different_replicas(model, *world_, Stream()), "");
}

TEST_P(ReplicaCheckTest, FindsTheDataParallelRankWithAnotherWeight) {
  constexpr const char* kName = "model.layers.1.mlp.up_proj.weight";
  for (int64_t rank = tensor(); rank < size(); ++rank) {  // of two copies the second is blamed
    const int64_t last_shard = 4 / tensor() * (rank % tensor() + 1) - 1;  // of this rank
    // a shard has ten rows, in blocks of five
    const std::string rows = " rows [" + std::to_string(10 * last_shard) + ", " +
                             std::to_string(10 * last_shard + 5) + ")";
    expect_on_all_ranks(found_after_change(rank, kName, 10 * last_shard),
                        differs(kName + rows, rank));
  }
}

TEST_P(ReplicaCheckTest, AWeightWithoutACopyMayBeAnything) {
  if (size() > tensor()) GTEST_SKIP() << "every weight has a copy";
  expect_on_all_ranks(found_after_change(0, "model.layers.1.mlp.up_proj.weight"), "");
}

TEST_P(ReplicaCheckTest, FindsTheRankWithAnotherNorm) {
  for (int64_t rank = size() > 2 ? 0 : 1; rank < size(); ++rank) {
    expect_on_all_ranks(found_after_change(rank, "model.norm.weight"),
                        differs("model.norm.weight", rank));
  }
}

TEST_P(ReplicaCheckTest, FindsTheRankWithAnotherCopyOfAKeyValueHead) {
  constexpr const char* kName = "model.layers.0.self_attn.k_proj.weight";
  const int64_t rank = size() - 1;  // holds the last shard, so the second copy of the second head
  const int64_t copy = tensor() == 4 ? 0 : 1;
  expect_on_all_ranks(found_after_change(rank, kName, kHeadDim, copy),
                      differs(std::string(kName) + " rows [6, 12)", rank));
}

TEST_P(ReplicaCheckTest, NamesAllRanksThatAreDifferent) {
  if (size() < 4) GTEST_SKIP() << "needs 4 ranks";
  const Transformer model = make_model(training_config());
  const int64_t rank = world_->rank();
  if (rank == 1) last_element(model, "model.norm.weight", 0) = 7;
  if (rank == 2) last_element(model, "model.norm.weight", 0) = 8;
  expect_on_all_ranks(find_different_replicas(model, *world_, Stream()),
                      "model.norm.weight is not the same on ranks 1, 2");
}

TEST_P(ReplicaCheckTest, EndsATrainingAtTheNextComparison) {
  if (size() == 1) GTEST_SKIP() << "needs 2 ranks";
  std::unique_ptr<testing::TemporaryFolder> folder;  // one for all ranks, written by the first
  if (world_->rank() == 0) folder = std::make_unique<testing::TemporaryFolder>();
  const fs::path path = broadcast_text(*world_, folder ? folder->path().string() : "", 0);
  if (world_->rank() == 0) write_tiny_corpus(path / "corpus", 150, kItems, 1);
  world_->barrier();

  TrainingConfig config = training_config();
  config.output = (path / "run").string();
  config.validation_every_steps = 4;
  config.checkpoint_every_steps = 0;
  config.sentinel_every_steps = 3;
  TokenTable tokens{0, 1, {}};
  for (int32_t item = 0; item < kItems; ++item) tokens.tokens.push_back(1 + item);
  const Corpus corpus(path / "corpus");
  Transformer model = make_model(config);
  BatchLoader loader(corpus, tokens,
                     {.part_tokens = config.micro_batch_tokens,
                      .parts_per_step = config.num_parts(),
                      .max_sequence_tokens = config.max_sequence_tokens});
  const auto change_last_rank = [&] {  // after step 4
    if (world_->rank() == size() - 1) last_element(model, "model.norm.weight", 0) += 1;
    return ValidationFigures{};
  };
  std::string message = "trained on";
  try {
    Trainer(config, parallel_, model, loader, *ranks_, change_last_rank,
            path / "corpus" / "manifest.json")
        .run("");
  } catch (const Error& error) {
    message = error.what();
  }
  expect_on_all_ranks(message.substr(0, message.find(':')),
                      "after step 6 " + differs("model.norm.weight", size() - 1));
  world_->barrier();
}

INSTANTIATE_TEST_SUITE_P(TensorParallelSizes, ReplicaCheckTest, ::testing::Values(1, 2, 4));

}  // namespace
}  // namespace mirabelle
