#pragma once

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "mirabelle/comm/parallel_config.h"
#include "mirabelle/comm/parallel_context.h"
#include "mirabelle/data/batch_loader.h"
#include "mirabelle/model/batch_queue.h"
#include "mirabelle/training/checkpoint.h"
#include "mirabelle/training/flat_partition.h"
#include "mirabelle/training/gradient_reducer.h"
#include "mirabelle/training/metrics_log.h"
#include "mirabelle/training/micro_step.h"
#include "mirabelle/training/optimizer.h"
#include "mirabelle/training/phase_seconds.h"
#include "mirabelle/training/train_config.h"
#include "mirabelle/training/weight_gatherer.h"

namespace mirabelle {

class Progress;

struct ValidationFigures {
  double recall_at_10 = 0;
  double ndcg_at_10 = 0;
};

/// Trains one model on one corpus. The ranks are a grid: those of a tensor-parallel group share one
/// copy of the model, those of a data-parallel group hold the same share of it. Each data-parallel
/// rank computes its neighbouring parts of every step's global batch; gradients are summed while
/// the backward pass runs.
class Trainer {
 public:
  /// How good the model is now; collective over all ranks, with the same figures on all. Before
  /// every batch of users it asks stops_now(), and if so returns nothing. May be empty: then
  /// nothing is validated.
  using Validate = std::function<std::optional<ValidationFigures>()>;

  /// All references must outlive the trainer. The weights are initialised here, from the seed and
  /// `token_rows` (see initialize_weights). The model must have the share model_share() of this
  /// rank, and gradients and loss options as model_limits() says. If it has levels, the loader's
  /// items have a token of each.
  Trainer(const TrainingConfig& config, const ParallelConfig& parallel, Transformer& model,
          BatchLoader& loader, const ParallelContext& ranks, Validate validate,
          std::filesystem::path tokenizer_file, std::span<const float> token_rows = {});

  /// Takes other first weights than the random ones: this rank's share, [layout.num_elements()] in
  /// the wide dtype. Before run(), which forgets them where it goes on from a checkpoint.
  void set_weights(const TensorView& values);

  /// The limits of a model that is going to be trained so. level_bounds: see LossOptions; may be
  /// empty if no option of the loss needs levels. Throws a kUsage Error that names the field if
  /// sizes do not fit together.
  static Transformer::Limits model_limits(const TrainingConfig& config,
                                          const ParallelConfig& parallel, int64_t world_size,
                                          const std::vector<int32_t>& level_bounds = {});
  /// How it sums gradients, and how data-parallel ranks share the flat parameters.
  static GradientReducer::Options reducer_options(const TrainingConfig& config,
                                                  const ParallelConfig& parallel,
                                                  int64_t data_parallel_size);
  static FlatPartition partition_of(const ParallelConfig& parallel, const ParameterLayout& layout,
                                    DType dtype, int64_t data_parallel_size, int64_t rank);

  /// Numbers of a step that the ranks sum up, beside the losses of its parts.
  static constexpr int64_t kStepFigures = 6;

  /// Seconds of each of `num_steps` optimizer steps, and their useful floating-point operations.
  /// The steps are complete, but at learning rate 0; afterwards everything is as before.
  /// Collective.
  struct StepTiming {
    double seconds = 0;
    int64_t tokens = 0;
    double flops = 0;
  };
  std::vector<StepTiming> time_steps(int64_t num_steps);

  /// What max_wall_seconds leaves time for, by timing some steps and a validation, with some
  /// reserve: one to ten validations, in no more than a twentieth of the time if there are several,
  /// and steps for the rest; at most max_steps. The same on all ranks. Nothing if a signal asks to
  /// stop meanwhile. Collective.
  struct TimePlan {
    int64_t steps = 0, validations = 0;
  };
  std::optional<TimePlan> plan_for_wall_time();

  /// Replaces these fields of the configuration, before run(), by what fits into max_wall_seconds.
  /// That limit is then the run's own: when it is reached the run is over.
  void set_schedule(int64_t max_steps, int64_t warmup_steps, int64_t validation_every_steps,
                    int64_t checkpoint_every_steps);
  const TrainingConfig& config() const { return config_; }

  /// Trains from the newest checkpoint of the output folder, if its run is not over, to max_steps
  /// or early stop. A run that stands there and is over is moved aside. `config_text` is saved as
  /// config.yaml and in every checkpoint.
  ///
  /// It stops earlier if StopSignals on any rank, or max_wall_seconds (since the trainer was made,
  /// but not before one step was made), ask for it: between two micro-steps, when the step is
  /// dropped, or between two batches of users of a validation, which is then owed. What is saved
  /// goes on as if it had not been stopped. The ranks vote on it while they compute a micro-step:
  /// in each, or if they are short every quarter of a second, and after the step.
  ///
  /// Returns the summary that is also written to summary.json: "finished" says whether the run is
  /// over, "stopped_by" why it ended. Collective.
  nlohmann::json run(const std::string& config_text);

  /// Whether the ranks stop now. Collective.
  bool stops_now() { return agree_on_stop() != Stop::kNone; }

 private:
  /// Why a run stops before it is over; of several the last.
  enum class Stop : int64_t { kNone, kOutOfTime, kSignal };

  struct StepResult {
    double loss = 0;                     ///< mean over the step's targets
    std::vector<double> loss_per_level;  ///< over those of each level
    double grad_norm = 0;
    int64_t tokens = 0;
    double flops = 0;
    double seconds = 0;
    Stop stop = Stop::kNone;
    bool is_bad = false;                 ///< the weights were not changed: see step_guard.h
    bool is_dropped = false;             ///< nothing was changed, and the rest is not set
    bool out_of_budget = false;          ///< the run is over
    bool checkpoint_is_written = false;  ///< by all ranks
  };
  StepResult train_step(double learning_rate);
  BatchLoader::Step load_step();
  int64_t parts_per_rank() const { return config_.num_parts() / ranks_.data().size(); }
  int64_t num_levels() const { return model_.loss_options().num_levels(); }
  Stop run_parts(const BatchLoader::Step& step);
  void run_part(int64_t part);
  void update_weights(double learning_rate);
  StepResult collect(const BatchLoader::Step& step, double start);
  void seek(const DataCursor& cursor);
  bool is_out_of_time() const;
  Stop wanted_stop() const;
  Stop agree_on_stop();
  void advance(const StepResult& result);
  bool is_due(int64_t every) const { return every > 0 && state_.step % every == 0; }
  bool answer_bad_step(const StepResult& result);
  bool go_to_newest_checkpoint();
  std::string end_step(const StepResult& result, Progress& progress);
  std::string stop_early(Stop stop);
  void prepare_output(const std::string& config_text);
  void load_checkpoint(const std::filesystem::path& folder);
  bool validate_now();
  void save_checkpoint(bool is_best);
  void commit_checkpoint();
  void compare_replicas();
  void log_step(const StepResult& result, double learning_rate);
  std::string reason_to_end(bool out_of_budget) const;
  nlohmann::json summary(const std::string& reason) const;

  TrainingConfig config_;
  ParallelConfig parallel_;
  Transformer& model_;
  BatchLoader& loader_;
  const ParallelContext& ranks_;
  Validate validate_;
  Stream stream_;
  BatchQueue batches_;
  MicroStep micro_step_;
  FlatPartition partition_;
  GradientReducer reducer_;
  WeightGatherer gatherer_;
  Optimizer optimizer_;
  CheckpointWriter writer_;
  MetricsLog metrics_;
  Buffer part_losses_;  // [parts_per_rank(), 1 + num_levels] float64: see loss_sums()
  TrainingState state_;
  DataCursor cursor_;                        // of the next step to train on
  std::optional<BatchLoader::Step> loaded_;  // that step, if it was loaded ahead
  bool is_saved_ = true;  // state_ is that of the newest checkpoint, or of a new run
  std::string config_text_;
  int64_t stop_vote_ = 0, parts_per_vote_ = 1;
  bool is_timing_ = false, has_stepped_ = false, time_is_budget_ = false;
  double start_;                     // of this process's clock: when the trainer was made
  double seconds_before_start_ = 0;  // spent by the processes before it
  double validation_seconds_ = 0, checkpoint_seconds_ = 0;  // the newest of each took so long
  PhaseSeconds phase_seconds_;                              // since the newest line of the metrics
  double checkpoint_start_ = 0;  // of the one that is being written, which
  bool checkpoint_is_best_ = false;
  int64_t checkpoint_step_ = 0;
  int64_t rollback_step_ = -1, rollbacks_to_checkpoint_ = 0;  // of that step
};

}  // namespace mirabelle
