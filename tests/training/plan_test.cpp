// Runs on 8 ranks, of which every case takes as many as it needs: what really was sent and
// allocated is what the plan says.

#include <gtest/gtest.h>
#include <malloc.h>

#include <map>
#include <sstream>

#include "mirabelle/training/parallel_plan.h"
#include "mirabelle/training/trainer.h"
#include "support/temporary_folder.h"
#include "support/tiny_corpus.h"
#include "support/tiny_model.h"

namespace mirabelle {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kItems = 30, kParts = 8, kPartTokens = 150, kSequenceTokens = 20;
constexpr int kSteps = 2;

struct Layout {
  int64_t tensor = 1, data = 1, zero_stage = 0;
  bool sequence_parallel = false, reproducible = false;
  const char* recompute = "none";
  const char* dtype = "float32";
  int64_t hidden_size = 64;
  std::string optimizer = "adamw";
  bool weighs_levels = false;  // items are two codes, and the loss has all its options
  bool is_qwen = false;        // biases, norms of heads, and heads of a width of their own

  int num_ranks() const { return static_cast<int>(tensor * data); }
  std::string name() const {
    std::ostringstream text;
    text << "tensor" << tensor << "_data" << data << "_zero" << zero_stage
         << (sequence_parallel ? "_sequence_parallel" : "") << (reproducible ? "_reproducible" : "")
         << "_recompute_" << recompute << "_" << dtype << "_hidden" << hidden_size
         << (optimizer == "adamw" ? "" : "_" + optimizer) << (weighs_levels ? "_levels" : "")
         << (is_qwen ? "_qwen" : "");
    return text.str();
  }
};
void PrintTo(const Layout& layout, std::ostream* out) { *out << layout.name(); }

/// Heap and mapped memory in use, as the C library counts it.
int64_t allocated_bytes() {
  const struct mallinfo2 info = mallinfo2();
  return static_cast<int64_t>(info.uordblks + info.hblkhd);
}

/// By group and collective.
using Traffic = std::map<std::pair<std::string, std::string>, int64_t>;

Traffic traffic_of(const ParallelContext& ranks) {
  Traffic traffic;
  for (const auto& [name, group] :
       std::map<std::string, const Communicator*>{{"tensor-parallel", &ranks.tensor()},
                                                  {"data-parallel", &ranks.data()},
                                                  {"world", &ranks.world()}}) {
    for (const auto& [collective, bytes] : group->traffic()) traffic[{name, collective}] = bytes;
  }
  return traffic;
}

/// "", or what differs.
std::string difference(const Traffic& actual, const Traffic& planned) {
  Traffic all = actual;
  all.insert(planned.begin(), planned.end());
  std::ostringstream text;
  for (const auto& [what, ignored] : all) {
    const auto bytes_in = [&](const Traffic& traffic) {
      const auto found = traffic.find(what);
      return found == traffic.end() ? 0 : found->second;
    };
    if (bytes_in(actual) == bytes_in(planned)) continue;
    text << what.first << " " << what.second << ": sent " << bytes_in(actual) << ", planned "
         << bytes_in(planned) << "; ";
  }
  return text.str();
}

class PlanTest : public ::testing::TestWithParam<Layout> {
 protected:
  static void SetUpTestSuite() {
    world_ = make_mpi_communicator();
    if (world_->rank() == 0) folder_ = std::make_unique<testing::TemporaryFolder>();
    path_ = broadcast_text(*world_, folder_ ? folder_->path().string() : "", 0);
    if (world_->rank() == 0) write_tiny_corpus(path_ / "corpus", 150, kItems, 1);
    world_->barrier();
  }
  static void TearDownTestSuite() {
    world_->barrier();
    folder_.reset();
    world_.reset();
  }
  ~PlanTest() override { world_->barrier(); }

  static PlannedRun planned_run() {
    PlannedRun run;
    run.training.output = (path_ / GetParam().name()).string();
    run.training.micro_batch_tokens = kPartTokens;
    run.training.global_batch_tokens = kParts * kPartTokens;
    run.training.max_sequence_tokens = kSequenceTokens;
    run.training.reproducible = GetParam().reproducible;
    run.training.recompute = GetParam().recompute;
    run.training.dtype = GetParam().dtype;
    run.training.optimizer = GetParam().optimizer;
    run.parallel.tensor_parallel_size = GetParam().tensor;
    run.parallel.zero_stage = GetParam().zero_stage;
    run.parallel.sequence_parallel = GetParam().sequence_parallel;
    run.parallel.gradient_bucket_mib = 1;
    run.model = GetParam().is_qwen ? testing::tiny_qwen_config() : testing::tiny_config();
    run.model.hidden_size = GetParam().hidden_size;
    run.model.num_kv_heads = 2;  // fewer than ranks
    run.model.ffn_hidden_size = 2 * run.model.hidden_size;
    run.model.tie_embeddings = false;
    run.model.dropout = 0.2;
    run.vocab_size = kItems + 1;
    if (GetParam().weighs_levels) {
      run.level_bounds = {1, 6, 12};
      run.training.label_smoothing = 0.1;
      run.training.level_weights = {3, 1};
      run.training.prefix_loss = "adaptive";
    }
    run.padded_vocab_size = 64;
    run.world_size = GetParam().num_ranks();
    run.device = Device::kCpu;
    return run;
  }

  static BatchLoader make_loader(const Corpus& corpus) {
    TokenTable tokens{0, GetParam().weighs_levels ? 2 : 1, {}};
    for (int32_t item = 0; item < kItems; ++item) {
      if (!GetParam().weighs_levels) {
        tokens.tokens.push_back(1 + item);
        continue;
      }
      tokens.tokens.push_back(1 + item / 6);
      tokens.tokens.push_back(6 + item % 6);
    }
    return BatchLoader(corpus, tokens,
                       {.part_tokens = kPartTokens,
                        .parts_per_step = kParts,
                        .max_sequence_tokens = kSequenceTokens});
  }

  static Transformer make_model(const PlannedRun& run, const ParallelContext& ranks) {
    return Transformer(
        run.model, run.vocab_size, run.padded_vocab_size, run.training.model_dtype(),
        Trainer::model_limits(run.training, run.parallel, run.world_size, run.level_bounds),
        Device::kCpu, model_share(run.training, run.parallel, ranks.world().rank(), run.world_size),
        &ranks.tensor());
  }

  /// Of the next steps of the loader.
  static Traffic planned_traffic(const PlannedRun& run, const ParallelContext& ranks,
                                 BatchLoader loader) {
    const int64_t first = ranks.data().rank() * run.parts_per_rank();
    const int64_t multiple =
        model_share(run.training, run.parallel, 0, run.world_size).token_multiple();
    Traffic traffic;
    for (int step = 0; step < kSteps; ++step) {
      std::vector<int64_t> part_tokens;
      for (const auto& part : loader.next_step(kParts, first, first + run.parts_per_rank()).parts) {
        part_tokens.push_back((part.num_tokens() + multiple - 1) / multiple * multiple);
      }
      const ParallelPlan plan = plan_training(run, part_tokens, ranks.world().rank());
      for (const PlannedTraffic& entry : plan.traffic) {
        // these ranks are a group within the model, which keeps its count to itself
        if (entry.group == "key/value heads") continue;
        traffic[{entry.group, entry.collective}] += entry.bytes;
      }
    }
    return traffic;
  }

  /// Runs `body(group)` on as many ranks as the layout has; "", or what the ranks' bodies complain
  /// of.
  template <typename Body>
  static std::string complaints(Body body) {
    const bool takes_part = world_->rank() < GetParam().num_ranks();
    const auto group = world_->split(takes_part ? 0 : 1, world_->rank(), "world");
    const std::string mine = takes_part ? body(*group) : "";
    std::string all;
    for (const std::string& text : all_gather_texts(*world_, mine)) all += text;
    return all;
  }

  static inline std::unique_ptr<Communicator> world_;
  static inline std::unique_ptr<testing::TemporaryFolder> folder_;
  static inline fs::path path_;
};

TEST_P(PlanTest, IsWhatIsSent) {
  EXPECT_EQ(complaints([&](const Communicator& group) {
              const PlannedRun run = planned_run();
              const ParallelContext ranks(group, run.parallel.tensor_parallel_size);
              const Corpus corpus(path_ / "corpus");
              BatchLoader loader = make_loader(corpus);
              const Traffic planned = planned_traffic(run, ranks, make_loader(corpus));
              Transformer model = make_model(run, ranks);
              Trainer trainer(run.training, run.parallel, model, loader, ranks, nullptr, "");
              const Traffic before = traffic_of(ranks);
              trainer.time_steps(kSteps);
              Traffic sent = traffic_of(ranks);
              for (const auto& [what, bytes] : before) sent[what] -= bytes;
              return difference(sent, planned);
            }),
            "");
}

/// Models that are large beside what is not planned.
class MemoryPlanTest : public PlanTest {};

TEST_P(MemoryPlanTest, IsWhatIsAllocated) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the sanitizer's allocator does not count";
#endif
  constexpr int64_t kSmallThings = 96 << 10;
  EXPECT_EQ(complaints([&](const Communicator& group) -> std::string {
              const PlannedRun run = planned_run();
              const ParallelPlan plan = plan_training(run);
              const ParallelContext ranks(group, run.parallel.tensor_parallel_size);
              const Corpus corpus(path_ / "corpus");
              BatchLoader loader = make_loader(corpus);
              const int64_t before = allocated_bytes();
              Transformer model = make_model(run, ranks);
              const Trainer trainer(run.training, run.parallel, model, loader, ranks, nullptr, "");
              const int64_t allocated = allocated_bytes() - before;
              const int64_t planned = plan.memory.total() + plan.checkpoint_bytes;
              if (planned <= allocated && allocated <= planned + kSmallThings) return "";
              return "allocated " + std::to_string(allocated) + ", planned " +
                     std::to_string(planned) + "; ";
            }),
            "");
}

std::vector<Layout> all_layouts() {
  std::vector<Layout> layouts;
  for (const int64_t tensor : {1, 2, 4}) {
    for (const int64_t data : {1, 2, 4, 8}) {
      if (tensor * data > 8) continue;
      for (const bool reproducible : {false, true}) {
        for (int64_t stage = 0; stage <= (data > 1 ? 2 : 0); ++stage) {
          const char* recompute = stage == 0 ? "none" : stage == 1 ? "block" : "attention";
          layouts.push_back({tensor, data, stage, false, reproducible, recompute});
          if (tensor > 1) layouts.push_back({tensor, data, stage, true, reproducible, recompute});
        }
      }
      layouts.push_back({tensor, data, data > 1 ? 1 : 0, tensor > 2, false, "block", "bfloat16"});
    }
  }
  layouts.push_back({4, 2, 2, true, true, "block", "bfloat16"});
  layouts.push_back({1, 2, 1, false, false, "none", "float32", 192});  // blocks of two buckets
  layouts.push_back({1, 2, 1, false, false, "none", "float32", 192, "muon"});
  layouts.push_back({2, 4, 2, false, true, "none", "bfloat16", 64, "muon"});
  layouts.push_back({1, 2, 0, false, false, "none", "float32", 64, "muon"});
  layouts.push_back({1, 2, 1, false, false, "none", "float32", 64, "adamw", true});
  layouts.push_back({4, 2, 2, true, true, "block", "bfloat16", 64, "adamw", true});
  layouts.push_back({1, 2, 1, false, false, "none", "float32", 64, "adamw", false, true});
  layouts.push_back({2, 2, 0, false, false, "attention", "float32", 64, "adamw", false, true});
  layouts.push_back({4, 1, 0, true, false, "none", "float32", 64, "adamw", false, true});
  layouts.push_back({4, 2, 2, true, true, "block", "bfloat16", 64, "muon", false, true});
  return layouts;
}
INSTANTIATE_TEST_SUITE_P(Layouts, PlanTest, ::testing::ValuesIn(all_layouts()),
                         [](const auto& info) { return info.param.name(); });
INSTANTIATE_TEST_SUITE_P(
    Layouts, MemoryPlanTest,
    ::testing::Values(Layout{1, 1, 0, false, false, "none", "float32", 128},
                      Layout{1, 1, 0, false, true, "none", "bfloat16", 128},  // sums of parts
                      Layout{1, 2, 1, false, false, "attention", "bfloat16", 128},
                      Layout{1, 4, 2, false, true, "none", "float32", 128},
                      Layout{1, 8, 2, false, false, "block", "float32", 128},
                      Layout{2, 1, 0, true, false, "none", "float32", 128},
                      Layout{2, 4, 2, false, false, "attention", "float32", 128},
                      Layout{4, 1, 0, false, true, "none", "float32", 128},
                      Layout{4, 2, 1, true, true, "block", "bfloat16", 128},
                      Layout{1, 1, 0, false, false, "none", "float32", 128, "muon"},
                      Layout{2, 4, 2, false, false, "none", "bfloat16", 128, "muon"},
                      Layout{2, 2, 1, true, false, "block", "float32", 128, "adamw", true},
                      Layout{1, 1, 0, false, false, "none", "float32", 128, "adamw", false, true},
                      Layout{4, 1, 0, true, true, "none", "bfloat16", 128, "adamw", false, true}),
    [](const auto& info) { return info.param.name(); });

}  // namespace
}  // namespace mirabelle
