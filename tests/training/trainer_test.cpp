#include "mirabelle/training/trainer.h"

#include <gtest/gtest.h>

#include <csignal>
#include <fstream>

#include "mirabelle/core/activity.h"
#include "mirabelle/core/files.h"
#include "mirabelle/kernels/reduce.h"
#include "mirabelle/training/lr_schedule.h"
#include "support/errors.h"
#include "support/newton_schulz_oracle.h"
#include "support/temporary_folder.h"
#include "support/tiny_corpus.h"
#include "support/tiny_model.h"

namespace mirabelle {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::TemporaryFolder;

constexpr int64_t kItems = 30;
constexpr double kAnyNorm = std::numeric_limits<double>::max();

/// Items as two codes: item / 6 and item % 6.
TokenTable tiny_tokens() {
  TokenTable table{0, 2, {}};
  for (int32_t item = 0; item < kItems; ++item) {
    table.tokens.push_back(1 + item / 6);
    table.tokens.push_back(6 + item % 6);
  }
  return table;
}

TrainingConfig tiny_training(const fs::path& output) {
  TrainingConfig config;
  config.output = output.string();
  config.max_steps = 20;
  config.warmup_steps = 2;
  config.learning_rate = 5e-3;
  config.micro_batch_tokens = 64;
  config.global_batch_tokens = 256;
  config.max_sequence_tokens = 20;
  config.log_every_steps = 1;
  config.validation_every_steps = 5;
  config.checkpoint_every_steps = 5;
  config.keep_checkpoints = 10;
  return config;
}

/// All that a run needs, on a corpus of 120 users.
class TrainerTest : public ::testing::Test {
 protected:
  TrainerTest() : corpus_(write_tiny_corpus(folder_.path() / "corpus", 120, kItems, 1)) {
    write_text_file(tokenizer_file(), "stands for a tokenizer");
  }

  fs::path tokenizer_file() const { return folder_.path() / "tokenizer.h5"; }
  fs::path output(const std::string& name) const { return folder_.path() / name; }

  json run(const TrainingConfig& config, Trainer::Validate validate = nullptr) {
    TransformerConfig model_config = testing::tiny_config();
    model_config.dropout = 0.1;
    model_config.tie_embeddings = tie_embeddings_;
    model_config.initializer_range = 0.02;
    model_ = std::make_unique<Transformer>(model_config, 12, 64, dtype_, limits(config));
    BatchLoader loader(corpus_, tiny_tokens(),
                       {.seed = config.seed,
                        .part_tokens = config.micro_batch_tokens,
                        .max_sequence_tokens = config.max_sequence_tokens});
    const auto self = make_self_communicator();
    const ParallelContext ranks(*self, 1);
    Trainer trainer(config, ParallelConfig(), *model_, loader, ranks, std::move(validate),
                    tokenizer_file());
    return trainer.run("text: of the configuration\n");
  }

  /// Of a model of the codes of tiny_tokens().
  static Transformer::Limits limits(const TrainingConfig& config) {
    return Trainer::model_limits(config, {}, /*world_size=*/1, {1, 6, 12});
  }

  static std::vector<json> metrics(const fs::path& output) {
    std::vector<json> lines;
    std::ifstream file(output / "metrics.jsonl");
    for (std::string line; std::getline(file, line);) lines.push_back(json::parse(line));
    return lines;
  }
  static std::vector<double> losses(const fs::path& output) {
    std::vector<double> values;
    for (const json& line : metrics(output)) {
      if (line.contains("loss")) values.push_back(line["loss"]);
    }
    return values;
  }
  /// At the end of a run, in float32.
  std::vector<float> weights(const fs::path& output) const {
    std::vector<float> values(model_->layout().num_elements());
    read_checkpoint_tensors(*newest_checkpoint(output), model_->layout(),
                            {.weights = view_of(values), .exp_avg = {}, .exp_avg_sq = {}},
                            *make_self_communicator());
    return values;
  }

  DType dtype_ = DType::kFloat32;
  bool tie_embeddings_ = true;
  TemporaryFolder folder_;
  Corpus corpus_;
  std::unique_ptr<Transformer> model_;
};

/// Of the dtypes that models are trained in.
class TrainerDTypeTest : public TrainerTest, public ::testing::WithParamInterface<DType> {
 protected:
  TrainerDTypeTest() { dtype_ = GetParam(); }
};
INSTANTIATE_TEST_SUITE_P(DTypes, TrainerDTypeTest,
                         ::testing::Values(DType::kFloat32, DType::kBFloat16),
                         [](const auto& info) { return std::string(to_string(info.param)); });

TEST_P(TrainerDTypeTest, TheLossGoesDown) {
  TrainingConfig config = tiny_training(output("run"));
  config.max_steps = 60;
  const json summary = run(config);
  const std::vector<double> loss = losses(output("run"));
  ASSERT_EQ(loss.size(), 60u);
  EXPECT_NEAR(loss.front(), std::log(12.0), 0.1);  // knows nothing: 12 tokens
  EXPECT_LT(loss.back(), 0.8 * loss.front());
  EXPECT_EQ(summary["train_steps"], 60);
  EXPECT_EQ(summary["stopped_by"], "max_steps");
  EXPECT_EQ(read_text_file(output("run") / "config.yaml"), "text: of the configuration\n");
}

TEST_P(TrainerDTypeTest, TheLossGoesDownWithMuon) {
  TrainingConfig config = tiny_training(output("run"));
  config.max_steps = 60;
  config.optimizer = "muon";
  config.muon_learning_rate = 0.04;
  run(config);
  const std::vector<double> loss = losses(output("run"));
  ASSERT_EQ(loss.size(), 60u);
  EXPECT_NEAR(loss.front(), std::log(12.0), 0.1);
  EXPECT_LT(loss.back(), 0.8 * loss.front());
}

TEST_F(TrainerTest, TheStateOfOneOptimizerIsNotThatOfAnother) {
  TrainingConfig config = tiny_training(output("run"));
  config.optimizer = "muon";
  config.max_wall_seconds = 1e-9;  // one step
  run(config);
  config.max_wall_seconds = 0;
  run(config);
  config.optimizer = "adamw";
  config.max_steps = 30;
  fs::remove(output("run") / "summary.json");  // as if it were not over
  testing::expect_error(ErrorKind::kUsage, "the state of training.optimizer muon",
                        [&] { run(config); });
}

TEST_F(TrainerTest, TheSameSeedGivesTheSameBitsAndAnotherSeedOthers) {
  TrainingConfig config = tiny_training(output("a"));
  run(config);
  const std::vector<float> first = weights(output("a"));
  config.output = output("b").string();
  run(config);
  EXPECT_EQ(weights(output("b")), first);
  EXPECT_EQ(losses(output("a")), losses(output("b")));
  config.output = output("c").string();
  config.seed = 1;
  run(config);
  EXPECT_NE(losses(output("a")), losses(output("c")));
}

TEST_P(TrainerDTypeTest, AResumedRunEqualsAnUninterruptedOneBitByBit) {
  TrainingConfig config = tiny_training(output("whole"));
  auto constant = [] { return ValidationFigures{0.5, 0.25}; };
  run(config, constant);
  const std::vector<float> whole = weights(output("whole"));

  config.output = output("broken").string();
  int validations = 0;  // at steps 5, 10, 15: dies at 15, so that 11 .. 15 are done again
  auto dies = [&] {
    if (++validations == 3) throw_error(ErrorKind::kOther, "the machine went away");
    return ValidationFigures{0.5, 0.25};
  };
  EXPECT_THROW(run(config, dies), Error);
  EXPECT_EQ(losses(output("broken")).size(), 15u);
  run(config, constant);
  EXPECT_EQ(weights(output("broken")), whole);
  EXPECT_EQ(losses(output("broken")), losses(output("whole")));
  EXPECT_EQ(metrics(output("broken")).size(), metrics(output("whole")).size());
}

TEST_F(TrainerTest, LogsTheLossOfEachLevel) {
  const TrainingConfig config = tiny_training(output("run"));
  run(config);
  for (const json& line : metrics(output("run"))) {
    if (!line.contains("loss")) continue;
    const auto levels = line["loss_per_level"].get<std::vector<double>>();
    ASSERT_EQ(levels.size(), 2u);
    EXPECT_NEAR((levels[0] + levels[1]) / 2, line["loss"].get<double>(), 1e-13);  // as many codes
    EXPECT_NE(levels[0], levels[1]);
    EXPECT_FALSE(line.contains("prefix_weights"));
  }
}

TEST_F(TrainerTest, LearnsOfALevelWhatItsWeightSays) {
  TrainingConfig config = tiny_training(output("run"));
  config.max_steps = 60;
  const auto last_losses = [&](const std::vector<double>& weights) {
    config.level_weights = weights;
    run(config);
    return metrics(output("run")).back()["loss_per_level"].get<std::vector<double>>();
  };
  const std::vector<double> both = last_losses({2, 2}), first = last_losses({1, 0});
  EXPECT_LT(both[0], 0.8 * std::log(12.0));
  EXPECT_LT(both[1], 0.8 * std::log(12.0));
  EXPECT_LT(first[0], 0.8 * std::log(12.0));
  EXPECT_GT(first[1], std::log(12.0));  // unlearnt: the other level's codes take all
}

TEST_F(TrainerTest, PrefixWeightsFollowTheLossesOfTheSteps) {
  TrainingConfig config = tiny_training(output("run"));
  config.prefix_loss = "adaptive";
  config.prefix_adaptation_rate = 0.25;
  config.label_smoothing = 0.1;
  run(config);
  std::vector<double> w = {0.5, 0.5};
  for (const json& line : metrics(output("run"))) {
    if (!line.contains("loss")) continue;
    const auto losses = line["loss_per_level"].get<std::vector<double>>();
    w[0] *= std::exp(0.25 * losses[0]);
    w[1] *= std::exp(0.25 * (losses[0] + losses[1]) / 2);
    const double sum = w[0] + w[1];
    for (double& value : w) value /= sum;
    const auto logged = line["prefix_weights"].get<std::vector<double>>();
    EXPECT_NEAR(logged[0], w[0], 1e-13);
    EXPECT_NEAR(logged[1], w[1], 1e-13);
  }
  EXPECT_GT(std::abs(w[0] - 0.5), 1e-3);
  EXPECT_EQ(read_training_state(*newest_checkpoint(output("run"))).prefix_weights,
            metrics(output("run")).back()["prefix_weights"].get<std::vector<double>>());
}

TEST_P(TrainerDTypeTest, AResumedRunAdaptsItsPrefixesAsIfItHadNotStopped) {
  TrainingConfig config = tiny_training(output("whole"));
  config.label_smoothing = 0.1;
  config.level_weights = {2, 1};
  config.prefix_loss = "adaptive";
  config.prefix_loss_weight = 1;
  config.prefix_adaptation_rate = 0.5;
  run(config);
  config.output = output("limited").string();
  config.max_wall_seconds = 1e-9;  // one step
  EXPECT_EQ(run(config)["train_steps"], 1);
  config.max_wall_seconds = 0;
  EXPECT_EQ(run(config)["stopped_by"], "max_steps");
  EXPECT_EQ(losses(output("limited")), losses(output("whole")));
  EXPECT_EQ(metrics(output("limited")).back()["prefix_weights"],
            metrics(output("whole")).back()["prefix_weights"]);
}

TEST_F(TrainerTest, ATimeLimitStopsTheRunAndTheNextOneGoesOn) {
  TrainingConfig config = tiny_training(output("whole"));
  run(config);
  config.output = output("limited").string();
  config.max_wall_seconds = 1e-9;  // one step
  EXPECT_EQ(run(config)["stopped_by"], "max_wall_seconds");
  EXPECT_EQ(losses(output("limited")).size(), 1u);
  config.max_wall_seconds = 0;
  EXPECT_EQ(run(config)["stopped_by"], "max_steps");
  EXPECT_EQ(losses(output("limited")), losses(output("whole")));
}

TEST_F(TrainerTest, AStoppedStepIsDroppedAndMadeAgain) {
  TrainingConfig config = tiny_training(output("whole"));
  run(config);
  const std::vector<float> whole = weights(output("whole"));
  config.output = output("stopped").string();
  const auto stop = [&] {
    const StopSignals signals;
    std::raise(SIGUSR1);  // of the four parts of the next step one is computed
    const json summary = run(config);
    EXPECT_EQ(summary["stopped_by"], "signal");
    EXPECT_EQ(summary["finished"], false);
    return summary["train_steps"].get<int64_t>();
  };
  EXPECT_EQ(stop(), 0);
  EXPECT_FALSE(newest_checkpoint(output("stopped")).has_value());
  config.max_wall_seconds = 1e-9;  // one step
  EXPECT_EQ(run(config)["stopped_by"], "max_wall_seconds");
  config.max_wall_seconds = 0;
  const auto written = fs::last_write_time(checkpoint_folder(output("stopped"), 1));
  EXPECT_EQ(stop(), 1);
  EXPECT_EQ(fs::last_write_time(checkpoint_folder(output("stopped"), 1)), written);  // not again
  EXPECT_EQ(run(config)["finished"], true);
  EXPECT_EQ(losses(output("stopped")), losses(output("whole")));
  EXPECT_EQ(weights(output("stopped")), whole);
}

/// Training that is stopped during each of its validations in turn, and after some.
class StoppedValidationTest : public TrainerTest {
 protected:
  /// NDCG by validation: the best is the second; two later the run has lost its patience.
  static ValidationFigures figures(int validation) {
    const double ndcg[] = {0.2, 0.4, 0.3, 0.1, 0.5};
    return {0.5, ndcg[validation]};
  }
  TrainingConfig config(const std::string& name) const {
    TrainingConfig config = tiny_training(output(name));
    config.max_steps = 23;
    config.early_stop_patience = 3;
    config.checkpoint_every_steps = 4;
    return config;
  }
  static std::vector<json> validations(const fs::path& output) {
    std::vector<json> found;
    for (const json& line : metrics(output)) {
      if (line.contains("validation"))
        found.push_back({line["step"], line["validation"]["ndcg@10"]});
    }
    return found;
  }
};

TEST_F(StoppedValidationTest, IsOwedAndChangesNothing) {
  int done = 0;
  const json whole = run(config("whole"), [&] { return figures(done++); });
  EXPECT_EQ(whole["stopped_by"], "max_steps");
  const std::vector<float> whole_weights = weights(output("whole"));

  done = 0;
  int asked = 0, num_stops = 0;
  json summary = {{"finished", false}};
  while (!summary["finished"].get<bool>()) {
    ASSERT_LT(num_stops, 20);
    const StopSignals signals;
    summary = run(config("stopped"), [&]() -> std::optional<ValidationFigures> {
      const bool completes = ++asked % 2 == 0;  // every second one is stopped after it
      if (asked % 4 != 0) std::raise(SIGTERM);
      return completes ? std::optional(figures(done++)) : std::nullopt;
    });
    if (summary["finished"].get<bool>()) break;
    ++num_stops;
    EXPECT_EQ(summary["stopped_by"], "signal");
    EXPECT_EQ(read_training_state(*newest_checkpoint(output("stopped"))).validation_is_owed,
              asked % 2 == 1);
  }
  EXPECT_EQ(num_stops, 7);  // of five validations each once, and after the first and the third
  EXPECT_EQ(summary["stopped_by"], whole["stopped_by"]);
  EXPECT_EQ(summary["train_steps"], 23);
  EXPECT_EQ(summary["best_step"], whole["best_step"]);
  EXPECT_EQ(losses(output("stopped")), losses(output("whole")));
  EXPECT_EQ(validations(output("stopped")), validations(output("whole")));
  EXPECT_EQ(weights(output("stopped")), whole_weights);
  EXPECT_EQ(find_checkpoint(output("stopped")).filename(),
            find_checkpoint(output("whole")).filename());
}

TEST_F(StoppedValidationTest, StopsEarlyWhereTheUndisturbedRunDoes) {
  TrainingConfig impatient = config("stopped");
  impatient.early_stop_patience = 2;
  int done = 0, asked = 0;
  json summary = {{"finished", false}};
  for (int start = 0; start < 5; ++start) {
    const StopSignals signals;
    summary = run(impatient, [&]() -> std::optional<ValidationFigures> {
      if (++asked % 2 == 0) return figures(done++);
      std::raise(SIGTERM);
      return std::nullopt;
    });
    EXPECT_EQ(summary["finished"].get<bool>(), start == 4) << start;
  }
  EXPECT_EQ(summary["stopped_by"], "early_stop");
  EXPECT_EQ(summary["train_steps"], 20);  // best at 10, then 15 and 20
  EXPECT_EQ(done, 4);
}

TEST_F(StoppedValidationTest, IsNotToldTwice) {
  int asked = 0;
  {
    const StopSignals signals;
    run(config("stopped"), [&]() -> std::optional<ValidationFigures> {
      std::raise(SIGTERM);
      return std::nullopt;
    });
  }
  const auto dies_at_the_second = [&] {
    if (++asked == 2) throw_error(ErrorKind::kOther, "the machine went away");
    return figures(0);
  };
  // The checkpoint of step 5 owes its validation; that of step 8 is not reached.
  TrainingConfig rare = config("stopped");
  rare.checkpoint_every_steps = 0;
  const auto not_better = [&] {
    if (++asked == 2) throw_error(ErrorKind::kOther, "the machine went away");
    return ValidationFigures{0, -1};
  };
  EXPECT_THROW(run(rare, not_better), Error);
  EXPECT_EQ(validations(output("stopped")).size(), 1u);
  asked = 0;
  EXPECT_THROW(run(rare, dies_at_the_second), Error);
  EXPECT_EQ(validations(output("stopped")), (std::vector<json>{{5, 0.2}}));
}

TEST_F(TrainerTest, AFinishedRunIsMovedAsideAndNothingIsLost) {
  const TrainingConfig config = tiny_training(output("run"));
  run(config);
  const std::vector<double> first = losses(output("run"));
  run(config);
  EXPECT_EQ(losses(output("run")), first);
  EXPECT_EQ(losses(output("run") / "previous-1"), first);
  EXPECT_TRUE(fs::exists(output("run") / "previous-1" / "checkpoints" / "step-00000020"));
}

TEST_F(TrainerTest, AFinishedRunThatWasKilledBeforeItsSummaryIsNotDoneAgain) {
  const TrainingConfig config = tiny_training(output("run"));
  int validations = 0;
  auto better_and_better = [&] { return ValidationFigures{0.1, 0.1 * ++validations}; };
  const json summary = run(config, better_and_better);
  fs::remove(output("run") / "summary.json");
  fs::remove(output("run") / "checkpoints" / "best");  // killed even before it was marked
  EXPECT_EQ(run(config, better_and_better), summary);
  EXPECT_EQ(validations, 4);
  EXPECT_FALSE(fs::exists(output("run") / "previous-1"));
  EXPECT_TRUE(fs::exists(output("run") / "summary.json"));
  EXPECT_EQ(find_checkpoint(output("run")).filename(), "step-00000020");
  EXPECT_TRUE(fs::exists(output("run") / "checkpoints" / "best"));
}

TEST_F(TrainerTest, ARunThatGoesOnHasNoSummaryOfItsPast) {
  TrainingConfig config = tiny_training(output("run"));
  config.max_wall_seconds = 1e-9;  // one step
  run(config);
  ASSERT_TRUE(fs::exists(output("run") / "summary.json"));
  config.max_wall_seconds = 0;
  bool had_summary = true;
  run(config, [&] {
    had_summary = fs::exists(output("run") / "summary.json");
    return ValidationFigures{};
  });
  EXPECT_FALSE(had_summary);
}

TEST_F(TrainerTest, RemovesWhatAKilledRunLeftOfACheckpoint) {
  const fs::path stale = checkpoint_folder(output("run"), 7).concat(".partial");
  write_text_file(stale / "tensors-00001-of-00001.h5", "half");
  run(tiny_training(output("run")));
  EXPECT_FALSE(fs::exists(stale));
}

TEST_F(TrainerTest, KeepsTheBestCheckpointAndTheNewestOnes) {
  TrainingConfig config = tiny_training(output("run"));
  config.keep_checkpoints = 1;
  int validations = 0;
  auto best_first = [&] { return ValidationFigures{0.1, ++validations == 1 ? 0.9 : 0.2}; };
  const json summary = run(config, best_first);
  EXPECT_EQ(summary["best_step"], 5);
  EXPECT_EQ(summary["best_validation_ndcg@10"], 0.9);
  EXPECT_EQ(find_checkpoint(output("run")).filename(), "step-00000005");
  EXPECT_EQ(newest_checkpoint(output("run"))->filename(), "step-00000020");
  EXPECT_FALSE(fs::exists(checkpoint_folder(output("run"), 10)));
  EXPECT_FALSE(fs::exists(checkpoint_folder(output("run"), 15)));
}

TEST_F(TrainerTest, StopsEarlyWhenValidationNoLongerImproves) {
  TrainingConfig config = tiny_training(output("run"));
  config.early_stop_patience = 2;
  int validations = 0;
  auto worse_and_worse = [&] { return ValidationFigures{0.1, 0.5 - 0.1 * ++validations}; };
  const json summary = run(config, worse_and_worse);
  EXPECT_EQ(summary["stopped_by"], "early_stop");
  EXPECT_EQ(summary["train_steps"], 15);  // best at 5, then 10 and 15
}

TEST_F(TrainerTest, TimingStepsChangesNothing) {
  TrainingConfig config = tiny_training(output("run"));
  config.prefix_loss = "adaptive";
  config.prefix_adaptation_rate = 1;
  run(config);

  Transformer model(model_->config(), 12, 64, DType::kFloat32, limits(config));
  BatchLoader loader(corpus_, tiny_tokens(),
                     {.seed = config.seed, .part_tokens = 64, .max_sequence_tokens = 20});
  const auto self = make_self_communicator();
  TrainingConfig other = config;
  other.output = output("timed").string();
  const ParallelContext ranks(*self, 1);
  Trainer trainer(other, ParallelConfig(), model, loader, ranks, nullptr, tokenizer_file());
  const auto timings = trainer.time_steps(3);
  ASSERT_EQ(timings.size(), 3u);
  EXPECT_GT(timings[0].tokens, 192);  // four parts of at most 64 tokens, well filled
  EXPECT_LE(timings[0].tokens, 256);
  trainer.run("");
  EXPECT_EQ(weights(output("timed")), weights(output("run")));
}

TEST_F(TrainerTest, WritesTheLossWithSeventeenDigits) {
  run(tiny_training(output("run")));
  std::ifstream file(output("run") / "metrics.jsonl");
  std::string line;
  std::getline(file, line);
  const size_t begin = line.find("\"loss\":") + 7;
  const std::string loss = line.substr(begin, line.find(',', begin) - begin);
  EXPECT_GE(std::count_if(loss.begin(), loss.end(), ::isdigit), 16) << loss;
  EXPECT_EQ(json::parse(line)["loss"].get<double>(), losses(output("run"))[0]);
}

TEST_F(TrainerTest, RefusesPartsThatTheRanksCannotShare) {
  TrainingConfig config = tiny_training(output("run"));
  config.global_batch_tokens = 3 * config.micro_batch_tokens;
  try {
    Trainer::model_limits(config, {}, /*world_size=*/2);
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    EXPECT_NE(std::string(error.what()).find("3 parts"), std::string::npos) << error.what();
  }
}

TEST_F(TrainerTest, RefusesWeightsOfOtherNumbersOfLevels) {
  TrainingConfig config = tiny_training(output("run"));
  config.level_weights = {1, 1, 1};
  try {
    limits(config);
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    EXPECT_NE(std::string(error.what()).find("have 2 levels"), std::string::npos) << error.what();
  }
}

// --- bad steps
// ------------------------------------------------------------------------------------

class BadStepTest : public TrainerDTypeTest {
 protected:
  /// The norms stay about the same, and vary as they do anyway; above 1.02 times the mean they are
  /// spikes.
  TrainingConfig config(const std::string& name, const std::string& optimizer = "adamw") const {
    TrainingConfig config = tiny_training(output(name));
    config.max_steps = 40;
    config.optimizer = optimizer;
    config.learning_rate = 1e-6;
    config.spike_factor = 1.02;
    config.spike_warmup_steps = 5;
    config.max_bad_steps = 30;
    config.checkpoint_every_steps = 1;
    config.keep_checkpoints = 100;
    return config;
  }
  /// Weights, then moments.
  std::vector<float> everything(const fs::path& output, int64_t step) const {
    const int64_t n = model_->layout().num_elements();
    std::vector<float> values(3 * n);
    const TensorView all = view_of(values);
    read_checkpoint_tensors(checkpoint_folder(output, step), model_->layout(),
                            {all.rows(0, n), all.rows(n, 2 * n), all.rows(2 * n, 3 * n)},
                            *make_self_communicator());
    return values;
  }
  static std::vector<json> bad_steps(const fs::path& output) {
    std::vector<json> found;
    for (const json& line : metrics(output)) {
      if (line.value("event", "") == "bad_step") found.push_back(line);
    }
    return found;
  }
};
INSTANTIATE_TEST_SUITE_P(DTypes, BadStepTest, ::testing::Values(DType::kFloat32, DType::kBFloat16),
                         [](const auto& info) { return std::string(to_string(info.param)); });

TEST_P(BadStepTest, ASpikeIsSkipped) {
  for (const std::string optimizer : {"adamw", "muon"}) {
    SCOPED_TRACE(optimizer);
    const fs::path folder = output(optimizer);
    const json summary = run(config(optimizer, optimizer));
    double mean = 0;
    int64_t num_good = 0, num_bad = 0;
    for (const json& line : metrics(folder)) {
      const int64_t step = line["step"];
      const double norm = line["grad_norm"];
      const bool is_bad = line.contains("event");
      SCOPED_TRACE(step);
      EXPECT_EQ(is_bad, num_good >= 5 && norm > 1.02 * mean);
      if (step > 1) {
        EXPECT_EQ(everything(folder, step) == everything(folder, step - 1), is_bad);
      }
      num_bad += is_bad;
      if (is_bad) continue;
      ++num_good;
      mean += (norm - mean) / static_cast<double>(num_good);
    }
    EXPECT_EQ(num_good + num_bad, 40);
    EXPECT_GE(num_bad, 3);
    EXPECT_GE(num_good, 10);
    EXPECT_EQ(summary["bad_steps"], num_bad);
    EXPECT_EQ(summary["train_steps"], 40);
    const TrainingState state = read_training_state(checkpoint_folder(folder, 40));
    EXPECT_NEAR(state.mean_grad_norm, mean, 1e-12);
    EXPECT_EQ(state.skipped_steps, num_bad);
  }
}

TEST_P(BadStepTest, AResumedRunSkipsTheSame) {
  run(config("whole"));
  const std::vector<float> whole = weights(output("whole"));
  TrainingConfig stopped = config("stopped");
  for (int start = 0; start < 12; ++start) {
    stopped.max_wall_seconds = start < 11 ? 1e-9 : 0;  // one step
    run(stopped);
  }
  EXPECT_EQ(losses(output("stopped")), losses(output("whole")));
  EXPECT_EQ(bad_steps(output("stopped")), bad_steps(output("whole")));
  EXPECT_EQ(weights(output("stopped")), whole);
}

TEST_P(BadStepTest, ARollbackGoesOnWithLaterData) {
  TrainingConfig back = config("run");
  back.bad_step = "rollback";
  back.checkpoint_every_steps = 4;
  back.spike_factor = 1.15;
  const json summary = run(back);
  const std::vector<json> events = bad_steps(output("run"));
  int64_t num_made = 40;  // steps' data
  for (const json& event : events) {
    const int64_t from = event["of_step"], to = event["step"];
    const bool rolls_back = event["action"] == "rollback";
    EXPECT_EQ(rolls_back, to >= 4);  // before the first checkpoint: skipped
    if (rolls_back) {
      EXPECT_TRUE(to % 4 == 0 && to < from && from <= to + 4) << event;
    }
    num_made += from - to;
  }
  EXPECT_GE(summary["rollbacks"].get<int64_t>(), 2);
  EXPECT_EQ(summary["bad_steps"], events.size());
  EXPECT_EQ(summary["rollbacks"],
            std::count_if(events.begin(), events.end(),
                          [](const json& event) { return event["action"] == "rollback"; }));
  std::vector<int64_t> steps;
  for (const json& line : metrics(output("run"))) {
    if (line.contains("loss")) steps.push_back(line["step"]);
  }
  EXPECT_TRUE(std::is_sorted(steps.begin(), steps.end()));
  EXPECT_EQ(std::adjacent_find(steps.begin(), steps.end()), steps.end());

  BatchLoader loader(corpus_, tiny_tokens(),
                     {.seed = back.seed, .part_tokens = 64, .max_sequence_tokens = 20});
  for (int64_t i = 0; i < num_made; ++i) loader.next_step(4, 0, 0);
  EXPECT_EQ(read_training_state(checkpoint_folder(output("run"), 40)).cursor, loader.cursor());
}

TEST_P(BadStepTest, ARollbackThatDoesNotHelpEndsTheRun) {
  TrainingConfig back = config("run");
  back.bad_step = "rollback";
  back.spike_factor = 1.0001;
  back.checkpoint_every_steps = 5;
  back.max_bad_steps = 1;
  testing::expect_error("rollbacks to step 5 (training.max_bad_steps)", [&] { run(back); });
  EXPECT_EQ(newest_checkpoint(output("run"))->filename(), "step-00000005");
}

TEST_P(BadStepTest, StopsAtTheFirstOrAfterManyInARow) {
  TrainingConfig stop = config("stop");
  stop.bad_step = "stop";
  testing::expect_error("(training.bad_step is stop)", [&] { run(stop); });
  ASSERT_EQ(bad_steps(output("stop")).size(), 1u);
  const json event = bad_steps(output("stop"))[0];
  EXPECT_EQ(event["action"], "stop");
  EXPECT_EQ(newest_checkpoint(output("stop")),
            checkpoint_folder(output("stop"), event["of_step"].get<int64_t>() - 1));

  TrainingConfig wild = config("wild");
  wild.learning_rate = 1e30;
  wild.max_grad_norm = 0;
  wild.max_bad_steps = 7;
  wild.spike_factor = 0;
  wild.checkpoint_every_steps = 0;
  testing::expect_error(", the last of 8 in a row (training.max_bad_steps); a lower",
                        [&] { run(wild); });
  EXPECT_EQ(bad_steps(output("wild")).size(), 8u);
  EXPECT_EQ(bad_steps(output("wild")).back()["grad_norm"], nullptr);
  EXPECT_FALSE(newest_checkpoint(output("wild")).has_value());
}

/// From step 5 on a row of the embedding is NaN: the steps that read it are bad, and it is in no
/// checkpoint.
TEST_F(TrainerTest, ANaNIsSkippedAndNeverSaved) {
  TrainingConfig config = tiny_training(output("run"));
  config.checkpoint_every_steps = 0;
  config.global_batch_tokens = config.micro_batch_tokens = 20;
  config.max_steps = 40;
  config.max_bad_steps = 40;
  tie_embeddings_ = false;      // NaN in the head would be in every step
  constexpr int32_t kRare = 5;  // the first code of the least popular items
  const auto poison = [&] {
    for (const LogicalPiece& piece : model_->layout().pieces()) {
      if (piece.name == "model.embed_tokens.weight") {
        model_->weights().as<float>()[piece.offset + kRare * piece.num_columns] = std::nanf("");
      }
    }
    return ValidationFigures{0, -1};  // not the best
  };
  testing::expect_error(
      "rank 0 has a value in weights/model.embed_tokens.weight that is not finite",
      [&] { run(config, poison); });
  EXPECT_TRUE(fs::is_empty(output("run") / "checkpoints"));

  std::vector<int64_t> expected, actual;
  BatchLoader loader(corpus_, tiny_tokens(),
                     {.seed = config.seed, .part_tokens = 20, .max_sequence_tokens = 20});
  for (int64_t step = 1; step <= 40; ++step) {
    const std::vector<int32_t> tokens = loader.next_step(1, 0, 1).parts[0].tokens;
    if (step > 5 && std::count(tokens.begin(), tokens.end(), kRare) > 0) expected.push_back(step);
  }
  for (const json& line : metrics(output("run"))) {
    if (line.value("event", "") == "bad_step") actual.push_back(line["of_step"]);
  }
  EXPECT_EQ(actual, expected);
  EXPECT_GE(expected.size(), 3u);
  EXPECT_LE(expected.size(), 32u);
  EXPECT_EQ(losses(output("run")).size(), 40 - expected.size());
  for (const double loss : losses(output("run"))) EXPECT_TRUE(std::isfinite(loss));
}

// --- schedule
// -------------------------------------------------------------------------------------

TEST(LearningRateTest, WarmsUpThenFollowsItsSchedule) {
  TrainingConfig config;
  config.learning_rate = 1;
  config.min_learning_rate = 0.1;
  config.warmup_steps = 10;
  config.max_steps = 110;
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 0), 0.1);
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 9), 1);
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 10), 1);
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 60), 0.55);  // half way
  EXPECT_NEAR(learning_rate_at(config, 110), 0.1, 1e-15);
  EXPECT_NEAR(learning_rate_at(config, 5000), 0.1, 1e-15);
  config.schedule = "constant";
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 5000), 1);
  config.schedule = "inverse_sqrt";
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 40), 0.5);
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 5000), 0.1);
  config.warmup_steps = 0;
  config.schedule = "cosine";
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 0), 1);
}

TEST(TrainingConfigTest, NamesTheFieldThatIsWrong) {
  auto message = [](auto change) {
    TrainingConfig config;
    change(config);
    try {
      config.check();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_EQ(message([](TrainingConfig&) {}), "");
  auto names = [&](const char* field, auto change) {
    EXPECT_NE(message(change).find(field), std::string::npos) << field << ": " << message(change);
  };
  names("max_steps", [](TrainingConfig& c) { c.max_steps = -1; });
  names("max_wall_seconds", [](TrainingConfig& c) { c.fit_steps_to_wall_time = true; });
  names("micro_batch_tokens", [](TrainingConfig& c) { c.micro_batch_tokens = 0; });
  names("global_batch_tokens", [](TrainingConfig& c) { c.global_batch_tokens = 3000; });
  names("max_sequence_tokens", [](TrainingConfig& c) { c.max_sequence_tokens = 4096; });
  names("learning_rate", [](TrainingConfig& c) { c.learning_rate = 0; });
  names("schedule", [](TrainingConfig& c) { c.schedule = "linear"; });
  names("optimizer", [](TrainingConfig& c) { c.optimizer = "sgd"; });
  names("muon_learning_rate", [](TrainingConfig& c) { c.muon_learning_rate = -1; });
  names("muon_momentum", [](TrainingConfig& c) { c.muon_momentum = 1; });
  names("beta1", [](TrainingConfig& c) { c.beta2 = 1; });
  names("label_smoothing", [](TrainingConfig& c) { c.label_smoothing = 1; });
  names("level_weights", [](TrainingConfig& c) { c.level_weights = {1, -1}; });
  names("level_weights", [](TrainingConfig& c) { c.level_weights = {0, 0}; });
  names("prefix_loss", [](TrainingConfig& c) { c.prefix_loss = "worst"; });
  names("prefix_loss_weight", [](TrainingConfig& c) { c.prefix_loss_weight = -1; });
  names("prefix_adaptation_rate", [](TrainingConfig& c) { c.prefix_adaptation_rate = -1; });
  names("bad_step", [](TrainingConfig& c) { c.bad_step = "ignore"; });
  names("spike_factor", [](TrainingConfig& c) { c.spike_factor = 0.5; });
  names("spike_warmup_steps", [](TrainingConfig& c) { c.spike_warmup_steps = 0; });
  names("max_bad_steps", [](TrainingConfig& c) { c.max_bad_steps = -1; });
  names("weight_decay", [](TrainingConfig& c) { c.weight_decay = -1; });
  names("keep_checkpoints", [](TrainingConfig& c) { c.keep_checkpoints = 0; });
  names("output", [](TrainingConfig& c) { c.output = ""; });
}

// --- optimizer
// ------------------------------------------------------------------------------------

TEST(OptimizerTest, ClipsByTheGlobalNormAndDecaysOnlyMatrices) {
  const TransformerConfig model_config = testing::tiny_config();
  const ParameterLayout layout(model_config, 32);
  TrainingConfig config;
  config.weight_decay = 0.5;
  config.max_grad_norm = 1;
  config.beta1 = 0;  // so that the mean gradient is the gradient
  config.epsilon = 1e-2;
  const Transformer model(model_config, 32, 32, DType::kFloat64, {8, 8, true});
  const FlatPartition whole(layout, 1, 0, layout.num_elements());
  const auto self = make_self_communicator();
  const GradientReducer reducer(model, whole, *self, {});
  Optimizer optimizer(layout, whole, reducer, config, DType::kFloat64, Device::kCpu, nullptr);
  const TensorView& weights = model.weights();
  double* w = weights.as<double>();
  double* g = model.gradients().as<double>();
  const int64_t matrix = 5, norm = layout.num_elements() - 1;
  w[matrix] = w[norm] = 2;
  g[matrix] = 3;
  g[norm] = 4;
  optimizer.update(weights, 0, 0.1, kAnyNorm, Stream());
  EXPECT_DOUBLE_EQ(*optimizer.grad_squares().as<double>(), 25);
  // clipped to norm 1: 0.6 and 0.8; at the first step the moving averages are these and their
  // squares
  EXPECT_NEAR(w[matrix], 2 - 0.1 * (0.6 / (0.6 + 1e-2) + 0.5 * 2), 1e-12);
  EXPECT_NEAR(w[norm], 2 - 0.1 * 0.8 / (0.8 + 1e-2), 1e-12);
  EXPECT_EQ(w[0], 0);
}

/// As they are stored, found by way of the logical tensors.
std::vector<MatrixBatch> matrices_of_first_layer(const ParameterLayout& layout, int64_t head_dim) {
  std::vector<MatrixBatch> matrices;
  for (const LogicalPiece& piece : layout.pieces()) {
    const auto has = [&](const char* name) {
      return piece.name == std::string("model.layers.0.") + name + ".weight";
    };
    if (has("self_attn.q_proj") || has("self_attn.k_proj") || has("self_attn.v_proj")) {
      for (int64_t row = 0; row < piece.num_rows; row += head_dim) {  // heads
        matrices.push_back(
            {piece.offset + row * piece.num_columns, 1, head_dim, piece.num_columns});
      }
    } else if (has("self_attn.o_proj") || has("mlp.down_proj")) {
      matrices.push_back({piece.offset, 1, piece.num_rows, piece.num_columns});
    }
  }
  const int64_t hidden = layout.pieces().front().num_columns;
  const int64_t rows = 2 * layout.sizes().ffn_hidden_size;  // gate and up in blocks
  for (int64_t shard = 0; shard < layout.share().num_local_shards(); ++shard) {
    matrices.push_back({layout.layers()[0].gate_up + shard * rows * hidden, 1, rows, hidden});
  }
  return matrices;
}

/// Of one shard, and of four that share two key/value heads.
class MuonOptimizerTest : public ::testing::TestWithParam<int64_t> {};
INSTANTIATE_TEST_SUITE_P(Shards, MuonOptimizerTest, ::testing::Values(1, 4));

TEST_P(MuonOptimizerTest, TwoStepsFollowTheFormula) {
  TransformerConfig model_config = testing::tiny_config();
  model_config.num_kv_heads = 2;
  model_config.tie_embeddings = false;
  TrainingConfig config;
  config.optimizer = "muon";
  config.weight_decay = 0.5;
  config.max_grad_norm = 1;
  if (GetParam() > 1) config.muon_learning_rate = 2 * config.learning_rate;
  const double of_muon = GetParam() > 1 ? 2 : 1;
  const ModelShare share = {.num_shards = GetParam(), .reproducible = GetParam() > 1};
  const Transformer model(model_config, 32, 32, DType::kFloat64, {8, 8, true}, Device::kCpu, share);
  const ParameterLayout& layout = model.layout();
  const FlatPartition whole(layout, 1, 0, layout.num_elements());
  const auto self = make_self_communicator();
  const GradientReducer reducer(model, whole, *self, {});
  Optimizer optimizer(layout, whole, reducer, config, DType::kFloat64, Device::kCpu, nullptr);
  const TensorView& weights = model.weights();
  double* w = weights.as<double>();
  double* g = model.gradients().as<double>();
  const int64_t n = layout.num_elements();
  for (int64_t i = 0; i < n; ++i) w[i] = std::sin(static_cast<double>(i));
  const std::vector<double> before(w, w + n);

  const double rates[] = {0.1, 0.07};
  std::vector<double> grads[2], clip;
  for (int64_t step = 0; step < 2; ++step) {
    for (int64_t i = 0; i < n; ++i) g[i] = std::cos(1 + 3.7 * static_cast<double>(i + n * step));
    grads[step].assign(g, g + n);
    optimizer.update(weights, step, rates[step], kAnyNorm, Stream());
    clip.push_back(1 / std::sqrt(*optimizer.grad_squares().as<double>()));
  }
  EXPECT_LT(clip[0], 0.1);  // it does clip

  int64_t num_elements = 0;
  for (const MatrixBatch& matrix : matrices_of_first_layer(layout, model_config.head_dim())) {
    testing::Matrix momentum{matrix.rows, matrix.columns}, direction = momentum;
    const auto size = static_cast<int64_t>(momentum.values.size());
    std::vector<double> expected(before.begin() + matrix.offset,
                                 before.begin() + matrix.offset + size);
    for (int64_t step = 0; step < 2; ++step) {
      for (int64_t i = 0; i < size; ++i) {
        const double grad = clip[step] * grads[step][matrix.offset + i];
        momentum.values[i] = 0.95 * momentum.values[i] + grad;
        direction.values[i] = grad + 0.95 * momentum.values[i];
      }
      const testing::Matrix orthogonal = testing::newton_schulz_oracle(direction);
      const double scale =
          0.2 * std::sqrt(static_cast<double>(std::max(matrix.rows, matrix.columns)));
      for (int64_t i = 0; i < size; ++i) {
        expected[i] -= of_muon * rates[step] * (scale * orthogonal.values[i] + 0.5 * expected[i]);
      }
    }
    for (int64_t i = 0; i < size; ++i) {
      ASSERT_NEAR(w[matrix.offset + i], expected[i], 1e-9) << matrix.offset << " + " << i;
    }
    num_elements += size;
  }
  EXPECT_EQ(num_elements, layout.regions()[1].size());

  // embedding, head and norms follow AdamW
  for (const int64_t i : {int64_t{0}, layout.regions()[1].begin - 1, layout.head(),
                          layout.norms() - 1, layout.norms(), n - 1}) {
    double mean = 0, square = 0, expected = before[i];
    for (int64_t step = 0; step < 2; ++step) {
      const double grad = clip[step] * grads[step][i];
      mean = 0.9 * mean + 0.1 * grad;
      square = 0.98 * square + 0.02 * grad * grad;
      const double exponent = static_cast<double>(step + 1);
      const double root = std::sqrt(square / (1 - std::pow(0.98, exponent)));
      const double decay = i < layout.norms() ? 0.5 : 0;
      expected -=
          rates[step] * (mean / (1 - std::pow(0.9, exponent)) / (root + 1e-8) + decay * expected);
    }
    EXPECT_NEAR(w[i], expected, 1e-9) << i;
  }
}

}  // namespace
}  // namespace mirabelle
