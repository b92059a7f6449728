#include "mirabelle/training/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>

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

namespace mirabelle {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

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

/// Keeps only the lines of the steps that a resumed run does not repeat.
void truncate_metrics(const fs::path& path, int64_t last_step) {
  if (!fs::exists(path)) return;
  std::ifstream file(path);
  std::string kept;
  for (std::string line; std::getline(file, line);) {
    const json entry = json::parse(line, nullptr, false);
    if (entry.is_object() && entry.value("step", last_step + 1) <= last_step) kept += line + "\n";
  }
  write_text_file(path, kept);
}

/// Renames what an earlier run left, so that nothing is lost: previous-1, previous-2, ...
void move_aside(const fs::path& output) {
  fs::path target;
  for (int n = 1; fs::exists(target = output / ("previous-" + std::to_string(n))); ++n) continue;
  fs::create_directories(target);
  for (const char* name : {"checkpoints", "metrics.jsonl", "summary.json", "config.yaml"}) {
    if (fs::exists(output / name)) fs::rename(output / name, target / name);
  }
  spdlog::info("moved the finished run in {} to {}", output.string(), target.string());
}

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
      part_losses_({parts_per_rank(), 1 + num_levels()}, DType::kFloat64, model.device()),
      start_(now_seconds()) {
  const Buffer values({model.layout().num_elements()}, wide(model.dtype()));
  initialize_weights(values.view(), model.layout(), model.config(), model.vocab_size(), config.seed,
                     token_rows);
  optimizer_.set_weights(model.weights(), values.view(), stream_);
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
  const int64_t first_part = ranks_.data().rank() * parts_per_rank();
  return loader_.next_step(config_.num_parts(), first_part, first_part + parts_per_rank());
}

void Trainer::seek(const DataCursor& cursor) {
  loader_.seek(cursor);
  cursor_ = cursor;
  loaded_.reset();
}

/// The gradients of all parts, summed over the ranks.
void Trainer::run_parts(const BatchLoader::Step& step) {
  const Activity activity("forward and backward");
  reducer_.begin_step(stream_);
  batches_.push(batch_view(step.parts.front()));
  for (size_t i = 0; i < step.parts.size(); ++i) {
    const ProfileRange range("micro-batch");
    if (i + 1 < step.parts.size()) batches_.push(batch_view(step.parts[i + 1]));
    const auto part = static_cast<int64_t>(i);
    PassHooks hooks = reducer_.hooks(part, stream_);
    if (gatherer_.is_under_way()) {
      hooks.weights_needed = [this](int64_t region) { gatherer_.wait_for(region, stream_); };
    }
    micro_step_.run(batches_.pop(stream_), hooks, stream_);
    copy(part_losses_.view().slice(part), model_.loss_sums(), stream_);
  }
  reducer_.finish(stream_);
}

void Trainer::update_weights(double learning_rate) {
  const Activity activity("optimizer");
  optimizer_.update(model_.weights(), state_.step, learning_rate, stream_);
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
  run_parts(step);
  update_weights(learning_rate);
  cursor_ = loader_.cursor();
  loaded_ = load_step();
  ranks_.world().synchronize(stream_);
  StepResult result = collect(step);
  MIRABELLE_CHECK(std::isfinite(result.loss), "the loss is ", result.loss, " at step ",
                  state_.step + 1, "; a lower training.learning_rate may help");
  result.seconds = now_seconds() - start;
  return result;
}

/// What all ranks must know of a step. The parts' losses are added in their order, wherever they
/// were computed.
Trainer::StepResult Trainer::collect(const BatchLoader::Step& step) {
  const int64_t num_parts = config_.num_parts(), part_sums = 1 + num_levels();
  std::vector<double> losses(parts_per_rank() * part_sums), sums(num_parts * part_sums + 3);
  double grad_squares = 0;
  copy(view_of(losses), part_losses_.view().reshaped({part_losses_.view().num_elements()}),
       stream_);
  copy(view_of(&grad_squares, {1}), optimizer_.grad_squares(), stream_);
  stream_.synchronize();
  double* const figures = sums.data() + num_parts * part_sums;
  double& flops = figures[0];
  double& out_of_time = figures[1];
  double& num_written = figures[2];
  if (ranks_.tensor().rank() == 0) {
    std::copy(losses.begin(), losses.end(),
              sums.begin() + ranks_.data().rank() * parts_per_rank() * part_sums);
    for (const BatchLoader::Part& part : step.parts) {
      flops += model_.training_flops(sequence_lengths(part));
    }
  }
  if (ranks_.world().rank() == 0) out_of_time = is_out_of_time();
  num_written = writer_.is_pending() && writer_.is_written();
  ranks_.world().all_reduce(view_of(sums), ReduceOp::kSum, stream_);
  StepResult result;
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
  result.grad_norm = std::sqrt(grad_squares);
  result.flops = flops;
  result.out_of_time = out_of_time > 0;
  result.checkpoint_is_written = num_written == ranks_.world().size();
  result.tokens = step.num_tokens;
  return result;
}

/// Leaves time for the last validation and checkpoint.
bool Trainer::is_out_of_time() const {
  return config_.max_wall_seconds > 0 &&
         now_seconds() - start_ + validation_seconds_ + checkpoint_seconds_ >=
             config_.max_wall_seconds;
}

std::vector<Trainer::StepTiming> Trainer::time_steps(int64_t num_steps) {
  const DataCursor cursor = cursor_;
  std::vector<StepTiming> timings;
  const double limit = std::exchange(config_.max_wall_seconds, 0);
  for (int64_t i = 0; i < num_steps; ++i) {
    const StepResult result = train_step(0);
    timings.push_back({result.seconds, result.tokens, result.flops});
  }
  config_.max_wall_seconds = limit;
  optimizer_.reset(stream_);
  gatherer_.finish(stream_);
  seek(cursor);
  return timings;
}

Trainer::TimePlan Trainer::plan_for_wall_time() {
  constexpr double kReserve = 0.93;  // shared machines slow down now and then
  constexpr double kValidationShare = 0.05;
  constexpr int64_t kMaxValidations = 10;
  time_steps(2);  // warms up
  std::vector<double> seconds;
  while (seconds.size() < 5 || (seconds.size() < 100 && seconds.size() * seconds.front() <
                                                            0.02 * config_.max_wall_seconds)) {
    seconds.push_back(time_steps(1).front().seconds);
    ranks_.world().broadcast(view_of(&seconds.back(), {1}), 0, stream_);
  }
  std::nth_element(seconds.begin(), seconds.begin() + seconds.size() / 2, seconds.end());
  const double step_seconds = seconds[seconds.size() / 2];

  const double before_validation = now_seconds();
  if (validate_) validate_();
  validation_seconds_ = now_seconds() - before_validation;
  double measured[2] = {validation_seconds_, now_seconds() - start_};
  ranks_.world().broadcast(view_of(measured, {2}), 0, stream_);
  const double limit = config_.max_wall_seconds;
  const double affordable = kValidationShare * limit / std::max(measured[0], 1e-3);
  TimePlan plan;
  plan.validations = std::clamp<int64_t>(static_cast<int64_t>(affordable), 1, kMaxValidations);
  const double available =
      kReserve * limit - static_cast<double>(plan.validations) * measured[0] - measured[1];
  plan.steps =
      std::clamp<int64_t>(static_cast<int64_t>(available / step_seconds), 1, config_.max_steps);
  if (ranks_.world().rank() == 0) {
    spdlog::info(
        "a step takes {:.3f} s, a validation {:.1f} s: {} steps and {} validations fit "
        "in {:.0f} s",
        step_seconds, validation_seconds_, plan.steps, plan.validations, limit);
  }
  return plan;
}

void Trainer::set_schedule(int64_t max_steps, int64_t warmup_steps, int64_t validation_every_steps,
                           int64_t checkpoint_every_steps) {
  config_.max_steps = max_steps;
  config_.warmup_steps = warmup_steps;
  config_.validation_every_steps = validation_every_steps;
  config_.checkpoint_every_steps = checkpoint_every_steps;
  config_.fit_steps_to_wall_time = false;
}

json Trainer::run(const std::string& config_text) {
  prepare_output(config_text);
  Progress progress("train", ranks_.world().rank() == 0, 30);
  std::string reason = reason_to_stop(false);
  while (reason.empty()) {
    set_current_step(state_.step + 1);
    const double learning_rate = learning_rate_at(config_, state_.step);
    const StepResult result = train_step(learning_rate);
    ++state_.step;
    state_.cursor = cursor_;
    state_.tokens += result.tokens;
    state_.step_seconds += result.seconds;
    state_.seconds = seconds_before_start_ + now_seconds() - start_;
    state_.loss = result.loss;
    if (config_.adapts_prefixes()) {
      state_.prefix_weights = adapted_prefix_weights(
          std::move(state_.prefix_weights), result.loss_per_level, config_.prefix_adaptation_rate);
    }
    if (result.checkpoint_is_written) commit_checkpoint();
    if (state_.step % config_.log_every_steps == 0 || state_.step == 1 ||
        state_.step == config_.max_steps) {
      log_step(result, learning_rate);
    }
    progress.update(state_.step, config_.max_steps,
                    "loss " + format_number(result.loss, 4) + "  " +
                        format_count(static_cast<int64_t>(static_cast<double>(state_.tokens) /
                                                          state_.step_seconds)) +
                        " tokens/s");
    const auto is_due = [&](int64_t every) { return every > 0 && state_.step % every == 0; };
    if (is_due(config_.sentinel_every_steps)) compare_replicas();
    const bool is_end = state_.step == config_.max_steps || result.out_of_time;
    const bool validates = validate_ && config_.validation_every_steps > 0 &&
                           (is_due(config_.validation_every_steps) || is_end);
    if (validates) progress.clear();
    const bool is_best = validates && validate_now();
    reason = reason_to_stop(result.out_of_time);
    if (!reason.empty() || is_best || is_due(config_.checkpoint_every_steps)) {
      state_.finished = !reason.empty() && !result.out_of_time;
      save_checkpoint(is_best);
    }
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

void Trainer::prepare_output(const std::string& config_text) {
  config_text_ = config_text;
  const fs::path output = config_.output;
  std::string newest;  // empty: begin anew. One rank looks, so that all see the same.
  if (ranks_.world().rank() == 0) {
    const auto found = config_.resume ? resumable_checkpoint(output) : std::nullopt;
    if (found) {
      newest = found->string();
    } else if (newest_checkpoint(output) || fs::exists(output / "metrics.jsonl")) {
      move_aside(output);
    }
    remove_partial_checkpoints(output);
    fs::remove(output / "summary.json");  // of a run that goes on
    fs::create_directories(output / "checkpoints");
    write_text_file(output / "config.yaml", config_text);
  }
  newest = broadcast_text(ranks_.world(), newest, 0);
  state_ = {};
  state_.optimizer = config_.optimizer;
  if (!newest.empty()) load_checkpoint(newest);
  seek(state_.cursor);
  seconds_before_start_ = state_.seconds;
}

void Trainer::load_checkpoint(const fs::path& folder) {
  const Activity activity("resume");
  state_ = read_training_state(folder);
  MIRABELLE_CHECK_USAGE(state_.optimizer == config_.optimizer, folder.string(),
                        ": has the state of training.optimizer ", state_.optimizer, ", with which ",
                        config_.optimizer, " cannot go on");
  if (!config_.adapts_prefixes()) state_.prefix_weights.clear();
  const auto num_weights = static_cast<int64_t>(state_.prefix_weights.size());
  MIRABELLE_CHECK_DATA(num_weights == 0 || num_weights == num_levels(), folder.string(), " has ",
                       num_weights, " prefix weights, the semantic IDs have ", num_levels(),
                       " levels");
  const Shape flat = {model_.layout().num_elements()};
  const Buffer weights(flat, DType::kFloat32), exp_avg(flat, DType::kFloat32),
      exp_avg_sq(flat, DType::kFloat32);
  read_checkpoint_tensors(folder, model_.layout(),
                          {weights.view(), exp_avg.view(), exp_avg_sq.view()}, ranks_.world());
  optimizer_.set_state(model_.weights(), {weights.view(), exp_avg.view(), exp_avg_sq.view()},
                       stream_);
  if (ranks_.world().rank() != 0) return;
  truncate_metrics(fs::path(config_.output) / "metrics.jsonl", state_.step);
  // It may have been put in place by a run that was killed before it could mark it.
  if (state_.best_step == state_.step) mark_best_checkpoint(config_.output, state_.step);
  spdlog::info("resume from {}", folder.string());
}

/// Whether the model is better than ever.
bool Trainer::validate_now() {
  const Activity activity("validate");
  const double start = now_seconds();
  gatherer_.finish(stream_);
  const ValidationFigures figures = validate_();
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
  log_metrics({{"step", state_.step},
               {"validation",
                {{"recall@10", figures.recall_at_10},
                 {"ndcg@10", figures.ndcg_at_10},
                 {"seconds", validation_seconds_}}}});
  spdlog::info("step {}: loss {:.4f}, validation recall@10 {:.4f}, NDCG@10 {:.4f}{}", state_.step,
               state_.loss, figures.recall_at_10, figures.ndcg_at_10, is_best ? " (best)" : "");
  return is_best;
}

/// Training goes on as soon as the tensors are in host memory; commit_checkpoint() ends it.
void Trainer::save_checkpoint(bool is_best) {
  const Activity activity("checkpoint");
  commit_checkpoint();
  checkpoint_start_ = now_seconds();
  checkpoint_is_best_ = is_best;
  checkpoint_step_ = state_.step;
  const CheckpointTensors host = writer_.prepare();
  for (const Bucket& bucket : partition_.buckets()) {
    const Optimizer::State device = optimizer_.state(model_.weights(), bucket);
    const auto fetch = [&](const TensorView& to, const TensorView& from) {
      copy(to.rows(bucket.owned_offset, bucket.owned_offset + bucket.owned.size()), from, stream_);
    };
    fetch(host.weights, device.master);
    fetch(host.exp_avg, device.exp_avg);
    fetch(host.exp_avg_sq, device.exp_avg_sq);
  }
  ranks_.world().synchronize(stream_);
  writer_.start(checkpoint_folder(config_.output, state_.step), state_, config_text_);
}

/// Waits for the checkpoint that is being written, if there is one.
void Trainer::commit_checkpoint() {
  if (!writer_.is_pending()) return;
  const Activity activity("checkpoint");
  writer_.commit();
  checkpoint_seconds_ = now_seconds() - checkpoint_start_;
  if (ranks_.world().rank() != 0) return;
  if (checkpoint_is_best_) mark_best_checkpoint(config_.output, checkpoint_step_);
  remove_old_checkpoints(config_.output, config_.keep_checkpoints);
}

/// Throws on every rank, and says where, if ranks hold different copies of a parameter.
void Trainer::compare_replicas() {
  gatherer_.finish(stream_);
  const std::string difference = find_different_replicas(model_, ranks_.world(), stream_);
  MIRABELLE_CHECK(difference.empty(), "after step ", state_.step, " ", difference,
                  ": the ranks have lost step, so nothing that they compute from here on means "
                  "anything; the newest checkpoint is the last that was compared or older");
}

void Trainer::log_step(const StepResult& result, double learning_rate) {
  if (ranks_.world().rank() != 0) return;
  json line = {{"step", state_.step},
               {"loss", result.loss},
               {"learning_rate", learning_rate},
               {"grad_norm", result.grad_norm},
               {"tokens", state_.tokens},
               {"tokens_per_second", static_cast<double>(result.tokens) / result.seconds},
               {"seconds", state_.seconds},
               {"epoch", state_.cursor.epoch}};
  if (num_levels() > 0) line["loss_per_level"] = result.loss_per_level;
  if (config_.adapts_prefixes()) line["prefix_weights"] = state_.prefix_weights;
  log_metrics(line);
}

/// nlohmann::json writes the shortest decimal that reads back to the same double; the loss is
/// written with all 17 digits, so that other readers get the same bits too.
void Trainer::log_metrics(const json& line) {
  std::string text = line.dump();
  if (line.contains("loss")) {
    char loss[40];
    std::snprintf(loss, sizeof loss, "%.17g", line["loss"].get<double>());
    const std::string shortest = "\"loss\":" + line["loss"].dump();
    text.replace(text.find(shortest), shortest.size(), std::string("\"loss\":") + loss);
  }
  const fs::path path = fs::path(config_.output) / "metrics.jsonl";
  std::ofstream file(path, std::ios::app);
  file << text << std::endl;
  MIRABELLE_CHECK(file.good(), path.string(), ": cannot write");
}

std::string Trainer::reason_to_stop(bool out_of_time) const {
  if (state_.step >= config_.max_steps) return "max_steps";
  if (out_of_time) return "max_wall_seconds";
  if (config_.early_stop_patience > 0 &&
      state_.validations_since_best >= config_.early_stop_patience) {
    return "early_stop";
  }
  return state_.finished ? "max_steps" : "";  // finished when there were fewer
}

json Trainer::summary(const std::string& reason) const {
  return {{"train_steps", state_.step},
          {"train_seconds", state_.seconds},
          {"step_seconds", state_.step_seconds},
          {"train_tokens", state_.tokens},
          {"tokens_per_second",
           state_.step_seconds > 0 ? static_cast<double>(state_.tokens) / state_.step_seconds : 0},
          {"stopped_by", reason},
          {"final_loss", state_.loss},
          {"best_step", state_.best_step},
          {"best_validation_recall@10", state_.best_recall},
          {"best_validation_ndcg@10", state_.best_ndcg},
          {"ranks", ranks_.world().size()},
          {"version", MIRABELLE_VERSION}};
}

}  // namespace mirabelle
