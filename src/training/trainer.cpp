#include "mirabelle/training/trainer.h"

#include <algorithm>
#include <cmath>

#include "mirabelle/core/activity.h"
#include "mirabelle/core/copy.h"
#include "mirabelle/core/error.h"
#include "mirabelle/core/files.h"
#include "mirabelle/core/logging.h"
#include "mirabelle/core/profile_range.h"
#include "mirabelle/core/progress.h"
#include "mirabelle/core/table.h"
#include "mirabelle/kernels/reduce.h"
#include "mirabelle/training/level_weights.h"
#include "mirabelle/training/lr_schedule.h"
#include "mirabelle/training/replica_check.h"
#include "mirabelle/training/step_guard.h"
#include "now_seconds.h"

namespace mirabelle {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

PackedBatch batch_view(const BatchLoader::Part& part) {
  return {view_of(part.tokens), view_of(part.targets), view_of(part.positions),
          view_of(part.sequence_ids), view_of(part.sequence_offsets)};
}

std::vector<int64_t> sequence_lengths(const BatchLoader::Part& part) {
  std::vector<int64_t> lengths;
  for (size_t i = 1; i < part.sequence_offsets.size(); ++i) {
    lengths.push_back(part.sequence_offsets[i] - part.sequence_offsets[i - 1]);
  }
  return lengths;
}

/// Of a step's work between two votes on stopping, about: a vote makes the ranks wait for each
/// other, which took a sixth of the time of micro-steps of a millisecond on a machine with too few
/// cores.
constexpr double kVoteSeconds = 0.25;

/// All ranks between which the summed gradients are divided.
const Communicator* norm_group(const ParallelConfig& parallel, const ParallelContext& ranks) {
  const bool is_sharded = parallel.zero_stage > 0 && ranks.data().size() > 1;
  if (is_sharded) return &ranks.world();
  return ranks.tensor().size() > 1 ? &ranks.tensor() : nullptr;
}

}  // namespace

Trainer::Trainer(const TrainingConfig& config, const ParallelConfig& parallel, Transformer& model,
                 BatchLoader& loader, const ParallelContext& ranks, Validate validate,
                 fs::path tokenizer_file, std::span<const float> token_rows)
    : config_(config),
      parallel_(parallel),
      model_(model),
      loader_(loader),
      ranks_(ranks),
      validate_(std::move(validate)),
      stream_(model.device(), config.reproducible),
      batches_(
          model.device(),
          model_limits(config, parallel, ranks.world().size(), model.loss_options().level_bounds)
              .max_tokens,
          config.max_sequence_tokens, model.layout().share().token_multiple()),
      micro_step_(model, config.cuda_graph),
      partition_(partition_of(parallel, model.layout(), model.dtype(), ranks.data().size(),
                              ranks.data().rank())),
      reducer_(model, partition_, ranks.data(),
               reducer_options(config, parallel, ranks.data().size())),
      gatherer_(model.weights(), partition_, ranks.data()),
      optimizer_(model.layout(), partition_, reducer_, config, model.dtype(), model.device(),
                 norm_group(parallel, ranks)),
      writer_(ranks.world(), model.layout(), partition_.owned_ranges(), std::move(tokenizer_file)),
      metrics_(config.output),
      part_losses_({parts_per_rank(), 1 + num_levels()}, DType::kFloat64, model.device()),
      start_(now_seconds()) {
  const Buffer values({model.layout().num_elements()}, wide(model.dtype()));
  initialize_weights(values.view(), model.layout(), model.config(), model.vocab_size(), config.seed,
                     token_rows);
  set_weights(values.view());
}

void Trainer::set_weights(const TensorView& values) {
  optimizer_.set_weights(model_.weights(), values, stream_);
}

Transformer::Limits Trainer::model_limits(const TrainingConfig& config,
                                          const ParallelConfig& parallel, int64_t world_size,
                                          const std::vector<int32_t>& level_bounds) {
  const int64_t multiple = model_share(config, parallel, 0, world_size).token_multiple();
  const int64_t data_parallel_size = world_size / parallel.tensor_parallel_size;
  MIRABELLE_CHECK_USAGE(config.num_parts() % data_parallel_size == 0,
                        "training.global_batch_tokens / training.micro_batch_tokens is ",
                        config.num_parts(), " parts, which must be divisible by the ",
                        data_parallel_size, " data-parallel ranks");
  Transformer::Limits limits;
  limits.max_tokens = (config.micro_batch_tokens + multiple - 1) / multiple * multiple;
  limits.max_sequence_tokens = config.max_sequence_tokens;
  limits.recompute = config.model_recompute();
  limits.gradients = GradientReducer::storage(reducer_options(config, parallel, data_parallel_size),
                                              data_parallel_size);
  limits.loss = {level_bounds, config.label_smoothing, config.weighs_levels()};
  const auto num_weights = static_cast<int64_t>(config.level_weights.size());
  MIRABELLE_CHECK_USAGE(num_weights == 0 || num_weights == limits.loss.num_levels(),
                        "training.level_weights has ", num_weights,
                        " weights, the tokenizer's semantic IDs have ", limits.loss.num_levels(),
                        " levels (a disambiguation code counts)");
  return limits;
}

GradientReducer::Options Trainer::reducer_options(const TrainingConfig& config,
                                                  const ParallelConfig& parallel,
                                                  int64_t data_parallel_size) {
  return {.zero_stage = parallel.zero_stage,
          .reproducible = config.reproducible,
          .parts_per_rank = config.num_parts() / data_parallel_size};
}

FlatPartition Trainer::partition_of(const ParallelConfig& parallel, const ParameterLayout& layout,
                                    DType dtype, int64_t data_parallel_size, int64_t rank) {
  const int64_t bucket_elements = (parallel.gradient_bucket_mib << 20) / size_in_bytes(wide(dtype));
  return FlatPartition(layout, data_parallel_size, rank, bucket_elements);
}

/// This rank's parts of the step at cursor_, which moves on.
BatchLoader::Step Trainer::load_step() {
  const ProfileRange range("load");
  const Activity activity("load");
  const PhaseClock clock(phase_seconds_.load);
  const int64_t first_part = ranks_.data().rank() * parts_per_rank();
  return loader_.next_step(config_.num_parts(), first_part, first_part + parts_per_rank());
}

void Trainer::seek(const DataCursor& cursor) {
  loader_.seek(cursor);
  cursor_ = cursor;
  loaded_.reset();
}

/// The gradients of all parts, summed over the ranks; or why the ranks stop between two parts.
Trainer::Stop Trainer::run_parts(const BatchLoader::Step& step) {
  const Activity activity("forward and backward");
  const PhaseClock clock(phase_seconds_.forward_backward);
  reducer_.begin_step(stream_);
  batches_.push(batch_view(step.parts.front()));
  for (size_t i = 0; i < step.parts.size(); ++i) {
    const ProfileRange range("micro-batch");
    const auto part = static_cast<int64_t>(i);
    std::unique_ptr<PendingCollective> vote;  // on its way while the part is computed
    if (i + 1 < step.parts.size()) batches_.push(batch_view(step.parts[i + 1]));
    const bool votes = !is_timing_ && i + 1 < step.parts.size();
    if (votes && (part + 1) % parts_per_vote_ == 0) {
      stop_vote_ = static_cast<int64_t>(wanted_stop());
      vote = ranks_.world().start_all_reduce(view_of(&stop_vote_, {1}), ReduceOp::kMax, stream_);
    }
    run_part(part);
    if (vote) vote->wait(stream_);
    if (vote && stop_vote_ > 0) {
      batches_.pop(stream_);
      reducer_.finish(stream_);
      return Stop{stop_vote_};
    }
  }
  reducer_.finish(stream_);
  return Stop::kNone;
}

/// Of the batch that was pushed first.
void Trainer::run_part(int64_t part) {
  PassHooks hooks = reducer_.hooks(part, stream_);
  if (gatherer_.is_under_way()) {
    hooks.weights_needed = [this](int64_t region) { gatherer_.wait_for(region, stream_); };
  }
  micro_step_.run(batches_.pop(stream_), hooks, stream_);
  copy(part_losses_.view().slice(part), model_.loss_sums(), stream_);
}

void Trainer::update_weights(double learning_rate) {
  const Activity activity("optimizer");
  const PhaseClock clock(phase_seconds_.optimizer);
  optimizer_.update(model_.weights(), state_.step - state_.skipped_steps, learning_rate,
                    max_good_norm(config_, state_), stream_);
  if (reducer_.is_sharded()) gatherer_.start(stream_);
}

/// While a GPU works on the step, the host loads the next one; then it waits for it.
Trainer::StepResult Trainer::train_step(double learning_rate) {
  const double start = now_seconds();
  const BatchLoader::Step step = loaded_ ? std::move(*loaded_) : load_step();
  loaded_.reset();
  model_.begin_step(1.0 / static_cast<double>(step.num_tokens), static_cast<uint64_t>(config_.seed),
                    state_.step, stream_);
  if (config_.weighs_levels()) {
    model_.set_level_weights(level_weights(config_, num_levels(), state_.prefix_weights), stream_);
  }
  StepResult result;
  result.stop = run_parts(step);
  result.is_dropped = result.stop != Stop::kNone;
  if (result.is_dropped) {
    ranks_.world().synchronize(stream_);
    return result;
  }
  update_weights(learning_rate);
  cursor_ = loader_.cursor();
  loaded_ = load_step();
  const PhaseClock clock(phase_seconds_.forward_backward);
  ranks_.world().synchronize(stream_);
  result = collect(step, start);
  MIRABELLE_CHECK(result.is_bad || std::isfinite(result.loss), "the loss is ", result.loss,
                  " at step ", state_.step + 1, ", but the gradient was good and is used already");
  result.seconds = now_seconds() - start;
  return result;
}

/// What all ranks must know of a step. The parts' losses are added in their order, wherever they
/// were computed.
Trainer::StepResult Trainer::collect(const BatchLoader::Step& step, double start) {
  const int64_t num_parts = config_.num_parts(), part_sums = 1 + num_levels();
  std::vector<double> losses(parts_per_rank() * part_sums),
      sums(num_parts * part_sums + kStepFigures);
  double grad_squares = 0;
  copy(view_of(losses), part_losses_.view().reshaped({part_losses_.view().num_elements()}),
       stream_);
  copy(view_of(&grad_squares, {1}), optimizer_.grad_squares(), stream_);
  stream_.synchronize();
  double* const figures = sums.data() + num_parts * part_sums;
  double& flops = figures[0];
  double& out_of_time = figures[1];  // ranks
  double& num_signals = figures[2];
  double& num_written = figures[3];
  double& num_bad = figures[4];
  double& seconds = figures[5];  // of rank 0
  if (ranks_.tensor().rank() == 0) {
    std::copy(losses.begin(), losses.end(),
              sums.begin() + ranks_.data().rank() * parts_per_rank() * part_sums);
    for (const BatchLoader::Part& part : step.parts) {
      flops += model_.training_flops(sequence_lengths(part));
    }
  }
  has_stepped_ = true;
  out_of_time = is_out_of_time();
  num_signals = stop_is_requested();
  num_written = writer_.is_pending() && writer_.is_written();
  if (ranks_.world().rank() == 0) seconds = now_seconds() - start;
  const double grad_norm = std::sqrt(grad_squares);
  num_bad = !(grad_norm <= max_good_norm(config_, state_));  // so NaN is
  ranks_.world().all_reduce(view_of(sums), ReduceOp::kSum, stream_);
  MIRABELLE_CHECK(num_bad == 0 || num_bad == ranks_.world().size(),
                  "the ranks disagree whether step ", state_.step + 1,
                  " is bad: here the gradient's norm is ", grad_norm);
  if (ranks_.world().size() > 1) {
    const double part_seconds = seconds / static_cast<double>(parts_per_rank());
    parts_per_vote_ = static_cast<int64_t>(std::max(1.0, kVoteSeconds / part_seconds));
  }
  StepResult result;
  result.is_bad = num_bad > 0;
  const auto sum_of_parts = [&](int64_t i) {
    double sum = 0;
    for (int64_t part = 0; part < num_parts; ++part) sum += sums[part * part_sums + i];
    return sum;
  };
  result.loss = sum_of_parts(0) / static_cast<double>(step.num_tokens);
  for (int64_t level = 0; level < num_levels(); ++level) {
    const int64_t num_targets = step.num_tokens / num_levels();
    result.loss_per_level.push_back(sum_of_parts(1 + level) / static_cast<double>(num_targets));
  }
  result.grad_norm = grad_norm;
  result.flops = flops;
  result.out_of_budget = out_of_time > 0 && time_is_budget_;
  result.stop = num_signals > 0                       ? Stop::kSignal
                : out_of_time > 0 && !time_is_budget_ ? Stop::kOutOfTime
                                                      : Stop::kNone;
  result.checkpoint_is_written = num_written == ranks_.world().size();
  result.tokens = step.num_tokens;
  return result;
}

/// Leaves time for the last checkpoint, and, where the run is over then, for the last validation.
bool Trainer::is_out_of_time() const {
  if (config_.max_wall_seconds <= 0 || is_timing_) return false;
  const double reserve = checkpoint_seconds_ + (time_is_budget_ ? validation_seconds_ : 0);
  return now_seconds() - start_ + reserve >= config_.max_wall_seconds;
}

/// What this rank knows of. A run that was started makes a step at least: with too short a limit it
/// would be started again and again for nothing.
Trainer::Stop Trainer::wanted_stop() const {
  if (is_timing_) return Stop::kNone;
  if (stop_is_requested()) return Stop::kSignal;
  return has_stepped_ && !time_is_budget_ && is_out_of_time() ? Stop::kOutOfTime : Stop::kNone;
}

/// The same on all ranks. Collective.
Trainer::Stop Trainer::agree_on_stop() {
  stop_vote_ = static_cast<int64_t>(wanted_stop());
  ranks_.world().all_reduce(view_of(&stop_vote_, {1}), ReduceOp::kMax, stream_);
  return Stop{stop_vote_};
}

json Trainer::run(const std::string& config_text) {
  prepare_output(config_text);
  phase_seconds_ = {};
  Progress progress("train", ranks_.world().rank() == 0, 30);
  std::string reason = state_.validation_is_owed ? end_step({}, progress) : reason_to_end(false);
  while (reason.empty()) {
    set_current_step(state_.step + 1);
    const double learning_rate = learning_rate_at(config_, state_.step);
    const StepResult result = train_step(learning_rate);
    if (result.is_dropped) {
      reason = stop_early(result.stop);
      break;
    }
    advance(result);
    if (result.checkpoint_is_written) {
      const PhaseClock clock(phase_seconds_.checkpoint);
      commit_checkpoint();
    }
    if (result.is_bad && answer_bad_step(result)) {
      reason = state_.validation_is_owed ? end_step({}, progress) : reason_to_end(false);
      continue;
    }
    if (is_due(config_.log_every_steps) || state_.step == 1 || state_.step == config_.max_steps) {
      log_step(result, learning_rate);
    }
    progress.update(state_.step, config_.max_steps,
                    "loss " + format_number(result.loss, 4) + "  " +
                        format_count(static_cast<int64_t>(static_cast<double>(state_.tokens) /
                                                          state_.step_seconds)) +
                        " tokens/s");
    if (is_due(config_.sentinel_every_steps)) compare_replicas();
    const bool is_end = state_.step == config_.max_steps || result.out_of_budget;
    state_.validation_is_owed = validate_ && config_.validation_every_steps > 0 &&
                                (is_due(config_.validation_every_steps) || is_end);
    reason = end_step(result, progress);
  }
  gatherer_.finish(stream_);
  commit_checkpoint();
  const json result = summary(reason);
  if (ranks_.world().rank() == 0) {
    write_text_file(fs::path(config_.output) / "summary.json", result.dump(2) + "\n");
  }
  ranks_.world().barrier();
  return result;
}

void Trainer::advance(const StepResult& result) {
  is_saved_ = false;
  ++state_.step;
  state_.cursor = cursor_;
  state_.tokens += result.tokens;
  state_.step_seconds += result.seconds;
  state_.seconds = seconds_before_start_ + now_seconds() - start_;
  if (result.is_bad) return count_bad_step(state_);
  count_good_step(state_, result.grad_norm);
  state_.loss = result.loss;
  if (config_.adapts_prefixes()) {
    state_.prefix_weights = adapted_prefix_weights(
        std::move(state_.prefix_weights), result.loss_per_level, config_.prefix_adaptation_rate);
  }
}

/// Does what training.bad_step says of a step that was not taken. Returns whether the run is at an
/// earlier step now.
bool Trainer::answer_bad_step(const StepResult& result) {
  const int64_t step = state_.step;
  const double limit = max_good_norm(config_, state_);
  const std::string what = "step " + std::to_string(step) +
                           " is bad: " + describe_bad_step(result.loss, result.grad_norm, limit);
  commit_checkpoint();  // of a step before
  const bool rolls_back = config_.bad_step == "rollback" && go_to_newest_checkpoint();
  const bool stops = config_.bad_step == "stop";
  if (ranks_.world().rank() == 0) {
    metrics_.add({{"step", state_.step},
                  {"event", "bad_step"},
                  {"action", rolls_back ? "rollback"
                             : stops    ? "stop"
                                        : "skip"},
                  {"of_step", step},
                  {"grad_norm", result.grad_norm},
                  {"what", what}});
    spdlog::warn("{}{}", what,
                 rolls_back ? "; back to step " + std::to_string(state_.step)
                 : stops    ? ""
                            : "; skipped");
  }
  const char* const advice = "; a lower training.learning_rate may help";
  MIRABELLE_CHECK(!stops, what, " (training.bad_step is stop)", advice);
  MIRABELLE_CHECK(state_.bad_steps_in_row <= config_.max_bad_steps, what, ", the last of ",
                  state_.bad_steps_in_row, " in a row (training.max_bad_steps)", advice);
  MIRABELLE_CHECK(rollbacks_to_checkpoint_ <= config_.max_bad_steps, what, ", after ",
                  config_.max_bad_steps, " rollbacks to step ", state_.step,
                  " (training.max_bad_steps)", advice);
  return rolls_back;
}

/// What follows a step: the validation that is owed, and a checkpoint. Returns why training ends
/// there; empty if it goes on.
std::string Trainer::end_step(const StepResult& result, Progress& progress) {
  Stop stop = result.stop;
  bool is_best = false;
  if (state_.validation_is_owed && stop == Stop::kNone) {
    progress.clear();
    is_best = validate_now();
    stop = agree_on_stop();
  }
  const std::string reason = reason_to_end(result.out_of_budget);
  state_.finished = !reason.empty();
  if (state_.finished || is_best || is_due(config_.checkpoint_every_steps))
    save_checkpoint(is_best);
  return reason.empty() && stop != Stop::kNone ? stop_early(stop) : reason;
}

/// Saves what is not saved yet, of a run that is not over. Returns why it stops.
std::string Trainer::stop_early(Stop stop) {
  const std::string reason = stop == Stop::kSignal ? "signal" : "max_wall_seconds";
  if (!is_saved_) save_checkpoint(false);
  if (ranks_.world().rank() == 0) {
    metrics_.add({{"step", state_.step}, {"stopped_by", reason}});
    spdlog::info("stopped by {} after step {}; started again, the run goes on",
                 stop == Stop::kSignal ? "a signal" : "training.max_wall_seconds", state_.step);
  }
  return reason;
}

/// Whether the model is better than ever. A validation that stops is still owed.
bool Trainer::validate_now() {
  const Activity activity("validate");
  const PhaseClock clock(phase_seconds_.validation);
  const double start = now_seconds();
  gatherer_.finish(stream_);
  const std::optional<ValidationFigures> measured = validate_();
  if (!measured) return false;
  const ValidationFigures& figures = *measured;
  state_.validation_is_owed = false;
  is_saved_ = false;
  validation_seconds_ = now_seconds() - start;
  state_.seconds = seconds_before_start_ + now_seconds() - start_;
  const bool is_best = figures.ndcg_at_10 > state_.best_ndcg;
  if (is_best) {
    state_.best_ndcg = figures.ndcg_at_10;
    state_.best_recall = figures.recall_at_10;
    state_.best_step = state_.step;
    state_.validations_since_best = 0;
  } else {
    ++state_.validations_since_best;
  }
  if (ranks_.world().rank() != 0) return is_best;
  metrics_.add({{"step", state_.step},
                {"validation",
                 {{"recall@10", figures.recall_at_10},
                  {"ndcg@10", figures.ndcg_at_10},
                  {"seconds", validation_seconds_}}}});
  spdlog::info("step {}: loss {:.4f}, validation recall@10 {:.4f}, NDCG@10 {:.4f}{}", state_.step,
               state_.loss, figures.recall_at_10, figures.ndcg_at_10, is_best ? " (best)" : "");
  return is_best;
}

/// Throws on every rank, and says where, if ranks hold different copies of a parameter.
void Trainer::compare_replicas() {
  gatherer_.finish(stream_);
  const std::string difference = find_different_replicas(model_, ranks_.world(), stream_);
  MIRABELLE_CHECK(difference.empty(), "after step ", state_.step, " ", difference,
                  ": the ranks have lost step, so nothing that they compute from here on means "
                  "anything; the newest checkpoint is the last that was compared or older");
}

/// Why the run is over; empty if it is not.
std::string Trainer::reason_to_end(bool out_of_budget) const {
  if (state_.validation_is_owed) return "";
  if (state_.step >= config_.max_steps) return "max_steps";
  if (out_of_budget) return "max_wall_seconds";
  if (config_.early_stop_patience > 0 &&
      state_.validations_since_best >= config_.early_stop_patience) {
    return "early_stop";
  }
  return state_.finished ? "max_steps" : "";  // finished when there were fewer
}

}  // namespace mirabelle
