// Runs on 8 ranks, of which every case takes as many as it needs: in the reproducible mode the
// losses and the final weights of all layouts are the same bits.

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <map>
#include <sstream>

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

struct Layout {
  int64_t tensor = 1, data = 1, zero_stage = 0;
  bool sequence_parallel = false;
  const char* recompute = "none";
  DType dtype = DType::kFloat32;
  std::string optimizer = "adamw";
  bool weighs_levels = false;  // items are two codes, and the loss has all its options
  bool is_qwen = false;        // biases, norms of heads, and heads of a width of their own

  int num_ranks() const { return static_cast<int>(tensor * data); }
  /// The run that it must be the same as.
  Layout on_one_rank() const {
    return {
        .dtype = dtype, .optimizer = optimizer, .weighs_levels = weighs_levels, .is_qwen = is_qwen};
  }
  std::string name() const {
    std::ostringstream text;
    text << "tensor" << tensor << "_data" << data << "_zero" << zero_stage
         << (sequence_parallel ? "_sequence_parallel" : "")
         << (std::string(recompute) == "none" ? "" : std::string("_recompute_") + recompute)
         << (dtype == DType::kFloat32 ? "" : std::string("_") + to_string(dtype))
         << (optimizer == "adamw" ? "" : "_" + optimizer) << (weighs_levels ? "_levels" : "")
         << (is_qwen ? "_qwen" : "");
    return text.str();
  }
};
void PrintTo(const Layout& layout, std::ostream* out) { *out << layout.name(); }

/// What a training leaves, as seen by one rank that holds everything.
struct Outcome {
  std::vector<std::string> losses;  ///< with all digits, by step; in all, then those of levels
  std::vector<float> weights, exp_avg, exp_avg_sq;
};

TransformerConfig model_config(const Layout& layout) {
  TransformerConfig config = layout.is_qwen ? testing::tiny_qwen_config() : testing::tiny_config();
  config.num_kv_heads = 2;  // fewer than shards
  config.tie_embeddings = false;
  config.dropout = 0.2;
  return config;
}

std::vector<Layout> all_layouts() {
  std::vector<Layout> layouts;
  for (const int64_t tensor : {1, 2, 4}) {
    for (const int64_t data : {1, 2, 4, 8}) {
      if (tensor * data > 8) continue;
      for (int64_t stage = 0; stage <= (data > 1 ? 2 : 0); ++stage) {
        layouts.push_back({tensor, data, stage});
        // in turn, so that each meets every size
        if (tensor > 1) layouts.push_back({tensor, data, stage, true});
      }
      layouts.push_back({tensor, data, data > 1 ? 2 : 0, tensor > 1, "attention"});
      layouts.push_back({tensor, data, data > 1 ? 1 : 0, tensor > 1, "block"});
    }
  }
  // partial sums are then wider than what they sum up to
  for (Layout layout : {Layout{1, 4, 2}, Layout{2, 2, 1}, Layout{4, 2, 0}, Layout{2, 2, 2, true},
                        Layout{4, 1, 0, true, "block"}, Layout{1, 2, 1, false, "attention"}}) {
    layout.dtype = DType::kBFloat16;
    layouts.push_back(layout);
  }
  // matrices that owners hold parts of, and shards that share key/value heads
  for (Layout layout : {Layout{1, 2, 0}, Layout{1, 8, 1}, Layout{1, 4, 2}, Layout{2, 1, 0},
                        Layout{2, 4, 2, true, "attention"}, Layout{4, 1, 0, true, "block"},
                        Layout{4, 2, 1}, Layout{2, 2, 1, false, "none", DType::kBFloat16}}) {
    layout.optimizer = "muon";
    layouts.push_back(layout);
  }
  for (Layout layout : {Layout{1, 4, 2}, Layout{2, 2, 1}, Layout{4, 2, 2, true, "block"},
                        Layout{2, 1, 0, true, "attention", DType::kBFloat16},
                        Layout{2, 4, 2, false, "none", DType::kFloat32, "muon"}}) {
    layout.weighs_levels = true;
    layouts.push_back(layout);
  }
  for (Layout layout : {Layout{1, 4, 2}, Layout{2, 1, 0}, Layout{2, 2, 1, true}, Layout{4, 1, 0},
                        Layout{4, 2, 2, true, "block"}, Layout{4, 2, 0, false, "attention"},
                        Layout{2, 4, 1, true, "none", DType::kBFloat16, "muon"}}) {
    layout.is_qwen = true;
    layouts.push_back(layout);
  }
  return layouts;
}

class LayoutTest : public ::testing::TestWithParam<Layout> {
 protected:
  static void SetUpTestSuite() {
    world_ = make_mpi_communicator();
    self_ = make_self_communicator();
    if (world_->rank() == 0) folder_ = std::make_unique<testing::TemporaryFolder>();
    path_ = broadcast_text(*world_, folder_ ? folder_->path().string() : "", 0);
    if (world_->rank() == 0) {
      write_tiny_corpus(path_ / "corpus", 150, kItems, 1);
      for (const Layout& layout : all_layouts()) {
        const Layout alone = layout.on_one_rank();
        if (!expected_.contains(alone.name())) expected_[alone.name()] = train_alone(alone);
      }
    }
    world_->barrier();
  }
  static void TearDownTestSuite() {
    world_->barrier();
    folder_.reset();
    self_.reset();
    world_.reset();
  }
  ~LayoutTest() override { world_->barrier(); }

  static Outcome train_alone(const Layout& layout) {
    const std::string output = "alone_" + layout.name();
    train(*self_, layout, output, kSteps);
    return read(layout, output, kSteps);
  }

  static TrainingConfig training_config(const Layout& layout, const std::string& output,
                                        int64_t max_steps) {
    TrainingConfig config;
    config.output = (path_ / output).string();
    config.max_steps = max_steps;
    config.schedule = "constant";
    config.warmup_steps = 2;
    config.micro_batch_tokens = 44;
    config.global_batch_tokens = 8 * 44;
    config.max_sequence_tokens = 20;
    config.validation_every_steps = 0;
    config.checkpoint_every_steps = 0;
    config.log_every_steps = 1;
    config.sentinel_every_steps = 2;
    config.reproducible = true;
    config.recompute = layout.recompute;
    config.optimizer = layout.optimizer;
    if (layout.weighs_levels) {
      config.label_smoothing = 0.1;
      config.level_weights = {3, 1};
      config.prefix_loss = "adaptive";
      config.prefix_loss_weight = 0.7;
      config.prefix_adaptation_rate = 0.3;
    }
    return config;
  }
  static ParallelConfig parallel_config(const Layout& layout) {
    ParallelConfig config;
    config.tensor_parallel_size = layout.tensor;
    config.zero_stage = layout.zero_stage;
    config.sequence_parallel = layout.sequence_parallel;
    return config;
  }

  /// An item is one token, or the codes item / 6 and item % 6.
  static TokenTable token_table(bool has_levels) {
    TokenTable table{0, has_levels ? 2 : 1, {}};
    for (int32_t item = 0; item < kItems; ++item) {
      if (has_levels) {
        table.tokens.insert(table.tokens.end(), {1 + item / 6, 6 + item % 6});
      } else {
        table.tokens.push_back(1 + item);
      }
    }
    return table;
  }

  /// Trains from the state in the output folder to `max_steps`. Collective over `group`.
  static void train(const Communicator& group, const Layout& layout, const std::string& output,
                    int64_t max_steps, bool reproducible = true) {
    TrainingConfig config = training_config(layout, output, max_steps);
    config.reproducible = reproducible;
    const ParallelConfig parallel = parallel_config(layout);
    const ParallelContext ranks(group, layout.tensor);
    const TokenTable tokens = token_table(layout.weighs_levels);
    const std::vector<int32_t> level_bounds =
        layout.weighs_levels ? std::vector<int32_t>{1, 6, 12} : std::vector<int32_t>{};
    const Corpus corpus(path_ / "corpus");
    Transformer model(model_config(layout), kItems + 1, kPaddedVocab, layout.dtype,
                      Trainer::model_limits(config, parallel, group.size(), level_bounds),
                      Device::kCpu, model_share(config, parallel, group.rank(), group.size()),
                      &ranks.tensor());
    BatchLoader loader(corpus, tokens,
                       {.part_tokens = config.micro_batch_tokens,
                        .parts_per_step = config.num_parts(),
                        .max_sequence_tokens = 20});
    Trainer(config, parallel, model, loader, ranks, nullptr, path_ / "corpus" / "manifest.json")
        .run("");
  }

  /// On rank 0.
  static Outcome read(const Layout& trained, const std::string& output, int64_t step) {
    Outcome outcome;
    std::ifstream metrics(path_ / output / "metrics.jsonl");
    for (std::string line; std::getline(metrics, line);) {
      const size_t begin = line.find("\"loss\":");
      outcome.losses.push_back(line.substr(begin, line.find(',', begin) - begin));
      const json entry = json::parse(line);
      for (const char* name : {"loss_per_level", "prefix_weights"}) {
        if (entry.contains(name)) outcome.losses.back() += " " + entry[name].dump();
      }
    }
    const ParameterLayout layout(model_config(trained), kPaddedVocab);
    for (auto* values : {&outcome.weights, &outcome.exp_avg, &outcome.exp_avg_sq}) {
      values->resize(layout.num_elements());
    }
    read_checkpoint_tensors(
        checkpoint_folder(path_ / output, step), layout,
        {view_of(outcome.weights), view_of(outcome.exp_avg), view_of(outcome.exp_avg_sq)}, *self_);
    return outcome;
  }

  static int64_t num_different(const std::vector<float>& a, const std::vector<float>& b) {
    int64_t count = a.size() == b.size() ? 0 : 1;
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
      count += std::memcmp(&a[i], &b[i], sizeof(float)) != 0;
    }
    return count;
  }
  static void expect_same_bits(const Outcome& actual, const Outcome& expected) {
    EXPECT_EQ(actual.losses, expected.losses);
    EXPECT_EQ(num_different(actual.weights, expected.weights), 0);
    EXPECT_EQ(num_different(actual.exp_avg, expected.exp_avg), 0);
    EXPECT_EQ(num_different(actual.exp_avg_sq, expected.exp_avg_sq), 0);
  }

  /// The first ranks, as many as the layout has; null on the others.
  static std::unique_ptr<Communicator> group_of(const Layout& layout) {
    const bool takes_part = world_->rank() < layout.num_ranks();
    auto group = world_->split(takes_part ? 0 : 1, world_->rank(), "layout");
    return takes_part ? std::move(group) : nullptr;
  }

  static constexpr int64_t kSteps = 6;
  static inline std::unique_ptr<Communicator> world_, self_;
  static inline std::unique_ptr<testing::TemporaryFolder> folder_;
  static inline fs::path path_;
  /// By name of the layout, on rank 0. Weights are the master weights.
  static inline std::map<std::string, Outcome> expected_;
};

TEST_P(LayoutTest, TrainsToTheBitsOfOneRank) {
  const std::string output = GetParam().name();
  if (const auto group = group_of(GetParam())) train(*group, GetParam(), output, kSteps);
  world_->barrier();
  if (world_->rank() != 0) return;
  const Outcome& expected = expected_[GetParam().on_one_rank().name()];
  ASSERT_EQ(expected.losses.size(), kSteps);
  expect_same_bits(read(GetParam(), output, kSteps), expected);
}

INSTANTIATE_TEST_SUITE_P(Layouts, LayoutTest, ::testing::ValuesIn(all_layouts()),
                         [](const auto& info) { return info.param.name(); });

/// A run that is stopped on one layout and goes on in another.
class ResumeTest : public LayoutTest {};

TEST_P(ResumeTest, GoesOnInAnyLayoutAsIfItHadNotStopped) {
  constexpr int64_t kStop = 4, kEnd = kStop + 20;
  const std::string output = "stopped_" + GetParam().name(), all = "all_" + GetParam().name();
  const Layout alone = GetParam().on_one_rank();
  Layout writer = alone;
  writer.tensor = writer.data = writer.zero_stage = 2;
  if (const auto group = group_of(writer)) train(*group, writer, output, kStop);
  world_->barrier();
  if (world_->rank() == 0) {
    train(*self_, alone, all, kEnd);
    // a finished run of kStop steps, seen as an unfinished one of kEnd
    const fs::path manifest = checkpoint_folder(path_ / output, kStop) / "manifest.json";
    json edited = json::parse(read_text_file(manifest));
    edited["state"]["finished"] = false;
    write_text_file(manifest, edited.dump());
  }
  world_->barrier();
  if (const auto group = group_of(GetParam())) train(*group, GetParam(), output, kEnd);
  world_->barrier();
  if (world_->rank() == 0) expect_same_bits(read(alone, output, kEnd), read(alone, all, kEnd));
}

INSTANTIATE_TEST_SUITE_P(
    Layouts, ResumeTest,
    ::testing::Values(Layout{1, 1, 0}, Layout{4, 1, 0, true}, Layout{1, 4, 1}, Layout{2, 2, 2},
                      Layout{.tensor = 4, .data = 2, .optimizer = "muon"},
                      Layout{.data = 8, .zero_stage = 1, .optimizer = "muon"},
                      Layout{4, 2, 1, true, "block", DType::kFloat32, "adamw", true}),
    [](const auto& info) { return info.param.name(); });

}  // namespace
}  // namespace mirabelle
