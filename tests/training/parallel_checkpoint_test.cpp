// Runs on 1, 2 and 4 ranks: whatever layout wrote a checkpoint, every layout reads it.

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>

#include "mirabelle/core/hdf5_file.h"
#include "mirabelle/training/checkpoint.h"
#include "support/logical_values.h"
#include "support/temporary_folder.h"
#include "support/tiny_model.h"

namespace mirabelle {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kPaddedVocab = 32;

/// Four shards hold two key/value heads: each twice.
TransformerConfig grouped_config() {
  TransformerConfig config = testing::tiny_config();
  config.num_kv_heads = 2;
  return config;
}

/// This layout's share of tensor-parallel rank `rank`.
ParameterLayout layout_of(int64_t num_shards, int64_t size, int64_t rank) {
  return ParameterLayout(grouped_config(), kPaddedVocab,
                         {.num_shards = num_shards,
                          .tensor_parallel_size = size,
                          .tensor_parallel_rank = rank,
                          .flat_multiple = 7});
}

/// Every region is cut in 2 n parts, each longer than the one before it; data-parallel rank k of n
/// owns parts k and n + k.
std::vector<FlatRange> owned_ranges(const ParameterLayout& layout, int64_t k, int64_t n) {
  std::vector<FlatRange> owned;
  for (const FlatRange& region : layout.regions()) {
    const auto cut = [&](int64_t i) {
      return region.begin + region.size() * i * (i + 1) / (2 * n * (2 * n + 1));
    };
    owned.push_back({cut(k), cut(k + 1)});
    owned.push_back({cut(n + k), cut(n + k + 1)});
  }
  return owned;
}

class ParallelCheckpointTest : public ::testing::Test {
 protected:
  ParallelCheckpointTest() : world_(make_mpi_communicator()) {
    if (world_->rank() == 0) {
      folder_ = std::make_unique<testing::TemporaryFolder>();
      folder_->write("tokenizer.h5", "the tokenizer");
    }
    path_ = broadcast_text(*world_, folder_ ? folder_->path().string() : "", 0);
  }
  ~ParallelCheckpointTest() override { world_->barrier(); }  // nobody removes the folder too early

  std::unique_ptr<CheckpointWriter> make_writer(int64_t num_shards,
                                                int64_t tensor_parallel_size) const {
    const int64_t rank = world_->rank(), size = world_->size();
    const ParameterLayout layout =
        layout_of(num_shards, tensor_parallel_size, rank % tensor_parallel_size);
    const std::vector<FlatRange> owned =
        owned_ranges(layout, rank / tensor_parallel_size, size / tensor_parallel_size);
    auto writer =
        std::make_unique<CheckpointWriter>(*world_, layout, owned, path_ / "tokenizer.h5");
    const auto fill = [&](const TensorView& to, float scale) {
      const std::vector<float> flat = testing::logical_values(layout, scale);
      float* next = to.as<float>();
      for (const FlatRange& range : owned) {
        next = std::copy(flat.begin() + range.begin, flat.begin() + range.end, next);
      }
    };
    const CheckpointTensors memory = writer->prepare();
    fill(memory.weights, 1);
    fill(memory.exp_avg, -1);
    fill(memory.exp_avg_sq, 0.5);
    return writer;
  }
  void write(const fs::path& folder, int64_t num_shards, int64_t tensor_parallel_size) const {
    const auto writer = make_writer(num_shards, tensor_parallel_size);
    TrainingState state;
    state.step = 7;
    writer->start(folder, state, "a: 1\n");
    writer->commit();
  }

  /// Elements of this share that are not what was written, padding among them.
  int64_t num_wrong(const fs::path& folder, const ParameterLayout& layout) const {
    std::vector<float> weights(layout.num_elements()), exp_avg = weights, exp_avg_sq = weights;
    read_checkpoint_tensors(folder, layout,
                            {view_of(weights), view_of(exp_avg), view_of(exp_avg_sq)}, *world_);
    const auto count = [&](const std::vector<float>& values, float scale) {
      const std::vector<float> wanted = testing::logical_values(layout, scale);
      int64_t wrong = 0;
      for (size_t i = 0; i < wanted.size(); ++i) wrong += values[i] != wanted[i];
      return wrong;
    };
    return count(weights, 1) + count(exp_avg, -1) + count(exp_avg_sq, 0.5);
  }
  int64_t sum(int64_t value) const {
    world_->all_reduce(view_of(&value, {1}), ReduceOp::kSum, Stream());
    return value;
  }

  /// Every rank runs `call`, and must throw the same.
  template <typename Call>
  void expect_error_everywhere(const std::string& part, Call call) const {
    std::string message = "accepted";
    try {
      call();
    } catch (const Error& error) {
      message = error.what();
    }
    for (const std::string& text : all_gather_texts(*world_, message)) {
      EXPECT_NE(text.find(part), std::string::npos) << text;
      EXPECT_EQ(text, message);
    }
  }
  /// Rank 0 does something to the files, then all go on.
  template <typename Edit>
  void on_first_rank(Edit edit) const {
    world_->barrier();
    if (world_->rank() == 0) edit();
    world_->barrier();
  }

  std::unique_ptr<Communicator> world_;
  std::unique_ptr<testing::TemporaryFolder> folder_;
  fs::path path_;
};

TEST_F(ParallelCheckpointTest, EveryLayoutReadsWhatEveryLayoutWrote) {
  const int64_t ranks = world_->size();
  for (int64_t shards : {1, 2, 4}) {
    for (int64_t size = 1; size <= std::min(shards, ranks); size *= 2) {
      const std::string name = std::to_string(shards) + "-" + std::to_string(size);
      write(path_ / name, shards, size);
      EXPECT_EQ(read_training_state(path_ / name).step, 7);
      for (int64_t read_shards : {1, 2, 4}) {
        for (int64_t read_size = 1; read_size <= read_shards; read_size *= 2) {
          int64_t wrong = 0;  // there may be fewer ranks here than in the layout
          for (int64_t rank = 0; rank < read_size; ++rank) {
            wrong += num_wrong(path_ / name, layout_of(read_shards, read_size, rank));
          }
          EXPECT_EQ(sum(wrong), 0)
              << name << " read by " << read_size << " ranks of " << read_shards << " shards";
        }
      }
    }
  }
}

TEST_F(ParallelCheckpointTest, NothingIsStoredTwice) {
  const int64_t size = std::min(4, world_->size());
  write(path_ / "checkpoint", 4, size);
  int64_t num_stored = 0;
  const std::string count = std::to_string(world_->size());
  for (const auto& entry : fs::directory_iterator(path_ / "checkpoint")) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with("tensors-")) continue;
    EXPECT_TRUE(name.ends_with("-of-0000" + count + ".h5")) << name;
    const Hdf5File file = Hdf5File::open(entry.path());
    for (const std::string& tensor : file.names("weights")) {
      num_stored += file.shape("weights/" + tensor).num_elements();
    }
  }
  EXPECT_EQ(num_stored, ParameterLayout(grouped_config(), kPaddedVocab).num_elements());
}

TEST_F(ParallelCheckpointTest, OneEditedFileIsTheSameErrorOnAllRanks) {
  const fs::path folder = path_ / "checkpoint";
  write(folder, 4, 1);
  const std::string count = std::to_string(world_->size());
  const std::string last = "tensors-0000" + count + "-of-0000" + count + ".h5";
  on_first_rank([&] { std::ofstream(folder / last, std::ios::app) << 'x'; });
  expect_error_everywhere(last + ": its SHA-256", [&] { num_wrong(folder, layout_of(1, 1, 0)); });
  on_first_rank([&] { fs::remove(folder / last); });
  expect_error_everywhere(last + ": cannot read", [&] { num_wrong(folder, layout_of(1, 1, 0)); });
}

TEST_F(ParallelCheckpointTest, RefusesAManifestWithoutOneOfTheFiles) {
  const fs::path folder = path_ / "checkpoint";
  write(folder, 1, 1);
  on_first_rank([&] {
    auto manifest = nlohmann::json::parse(read_text_file(folder / "manifest.json"));
    manifest["tensor_files"].erase(manifest["tensor_files"].size() - 1);
    write_text_file(folder / "manifest.json", manifest.dump());
  });
  expect_error_everywhere("elements, wanted", [&] { num_wrong(folder, layout_of(1, 1, 0)); });
}

TEST_F(ParallelCheckpointTest, AnErrorOfTheFirstRankEndsTheCheckpointOnAll) {
  const fs::path folder = path_ / "run" / "checkpoint";
  const auto writer = make_writer(1, 1);
  on_first_rank([&] { fs::remove(path_ / "tokenizer.h5"); });
  writer->start(folder, {}, "");
  expect_error_everywhere("tokenizer.h5: cannot copy", [&] { writer->commit(); });
  world_->barrier();
  EXPECT_TRUE(fs::is_empty(folder.parent_path()));
  world_->barrier();
  on_first_rank([&] { write_text_file(path_ / "blocked", ""); });
  expect_error_everywhere("cannot create",
                          [&] { writer->start(path_ / "blocked" / "a" / "b", {}, ""); });
  EXPECT_FALSE(writer->is_pending());
}

TEST_F(ParallelCheckpointTest, AFullDiskOfTheLastRankEndsTheCheckpointOnAll) {
  const fs::path folder = path_ / "run" / "checkpoint";
  const auto writer = make_writer(1, 1);
  struct rlimit unlimited;
  getrlimit(RLIMIT_FSIZE, &unlimited);
  std::signal(SIGXFSZ, SIG_IGN);  // the write fails instead
  const struct rlimit limited = {5000, unlimited.rlim_max};
  if (world_->rank() == world_->size() - 1) setrlimit(RLIMIT_FSIZE, &limited);
  writer->start(folder, {}, "");
  while (!writer->is_written()) std::this_thread::yield();
  setrlimit(RLIMIT_FSIZE, &unlimited);
  expect_error_everywhere("is the disk full?", [&] { writer->commit(); });
  world_->barrier();
  EXPECT_TRUE(fs::is_empty(folder.parent_path()));
  world_->barrier();
  writer->start(folder, {}, "");
  writer->commit();
  EXPECT_EQ(sum(num_wrong(folder, layout_of(1, 1, 0))), 0);
}

}  // namespace
}  // namespace mirabelle
