#include "mirabelle/training/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>

#include "mirabelle/comm/gradient_reducer.h"
#include "mirabelle/core/copy.h"
#include "mirabelle/core/error.h"
#include "mirabelle/core/files.h"
#include "mirabelle/core/logging.h"
#include "mirabelle/core/profile_range.h"
#include "mirabelle/core/progress.h"
#include "mirabelle/core/table.h"
#include "mirabelle/kernels/reduce.h"
#include "mirabelle/training/lr_schedule.h"

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

}  // namespace

Trainer::Trainer(const TrainingConfig& config, const ParallelConfig& parallel, Transformer& model,
                 BatchLoader& loader, const Communicator& data_parallel, Validate validate,
                 fs::path tokenizer_file)
    : config_(config),
      parallel_(parallel),
      model_(model),
      loader_(loader),
      group_(data_parallel),
      validate_(std::move(validate)),
      tokenizer_file_(std::move(tokenizer_file)),
      stream_(model.device(), config.reproducible),
      batches_(model.device(), config.micro_batch_tokens, config.max_sequence_tokens),
      micro_step_(model, config.cuda_graph),
      optimizer_(model.layout(), config, model.dtype(), model.device()),
      start_(now_seconds()) {
  MIRABELLE_CHECK_USAGE(config.num_parts() % group_.size() == 0,
                        "training.global_batch_tokens / training.micro_batch_tokens is ",
                        config.num_parts(), " parts, which must be divisible by the ",
                        group_.size(), " data-parallel ranks");
  const Buffer values({model.layout().num_elements()}, wide(model.dtype()));
  initialize_weights(values.view(), model.layout(), model.config(), config.seed);
  optimizer_.set_weights(model.weights(), values.view(), stream_);
}

/// This rank's parts of the step at cursor_, which moves on.
BatchLoader::Step Trainer::load_step() {
  const ProfileRange range("load");
  const int64_t parts_per_rank = config_.num_parts() / group_.size();
  const int64_t first_part = group_.rank() * parts_per_rank;
  return loader_.next_step(config_.num_parts(), first_part, first_part + parts_per_rank);
}

void Trainer::seek(const DataCursor& cursor) {
  loader_.seek(cursor);
  cursor_ = cursor;
  loaded_.reset();
}

/// The gradients of all parts, summed over the ranks.
void Trainer::run_parts(const BatchLoader::Step& step) {
  GradientReducer reducer(group_, parallel_.gradient_bucket_mib << 20);
  const auto reduce = [&](const TensorView& range) { reducer.add(range, stream_); };
  batches_.push(batch_view(step.parts.front()));
  for (size_t i = 0; i < step.parts.size(); ++i) {
    const ProfileRange range("micro-batch");
    const bool is_last = i + 1 == step.parts.size();
    if (!is_last) batches_.push(batch_view(step.parts[i + 1]));
    micro_step_.run(batches_.pop(stream_),
                    is_last && group_.size() > 1 ? Transformer::GradientsFinal(reduce) : nullptr,
                    stream_);
  }
  reducer.finish(stream_);
}

/// While a GPU works on the step, the host loads the next one; then it waits for it.
Trainer::StepResult Trainer::train_step(double learning_rate) {
  const double start = now_seconds();
  const BatchLoader::Step step = loaded_ ? std::move(*loaded_) : load_step();
  loaded_.reset();
  model_.begin_step(1.0 / static_cast<double>(step.num_tokens), static_cast<uint64_t>(config_.seed),
                    state_.step, stream_);
  run_parts(step);
  optimizer_.update(model_.weights(), model_.gradients(), state_.step, learning_rate, stream_);
  cursor_ = loader_.cursor();
  loaded_ = load_step();

  group_.synchronize(stream_);
  double loss = 0, grad_squares = 0;
  copy(view_of(&loss, {1}), model_.loss_sum(), stream_);
  copy(view_of(&grad_squares, {1}), optimizer_.grad_squares(), stream_);
  stream_.synchronize();
  double sums[3] = {loss};  // over ranks: loss, FLOPs, rank 0 is out of time
  for (const BatchLoader::Part& part : step.parts) {
    sums[1] += model_.training_flops(sequence_lengths(part));
  }
  if (group_.rank() == 0) sums[2] = is_out_of_time();
  group_.all_reduce(view_of(sums, {3}), ReduceOp::kSum, stream_);
  StepResult result;
  result.loss = sums[0] / static_cast<double>(step.num_tokens);
  result.grad_norm = std::sqrt(grad_squares);
  result.flops = sums[1];
  result.out_of_time = sums[2] > 0;
  MIRABELLE_CHECK(std::isfinite(result.loss), "the loss is ", result.loss, " at step ",
                  state_.step + 1, "; a lower training.learning_rate may help");
  result.tokens = step.num_tokens;
  result.seconds = now_seconds() - start;
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
  fill_zero(optimizer_.exp_avg(), stream_);
  fill_zero(optimizer_.exp_avg_sq(), stream_);
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
    group_.broadcast(view_of(&seconds.back(), {1}), 0, stream_);
  }
  std::nth_element(seconds.begin(), seconds.begin() + seconds.size() / 2, seconds.end());
  const double step_seconds = seconds[seconds.size() / 2];

  const double before_validation = now_seconds();
  if (validate_) validate_();
  validation_seconds_ = now_seconds() - before_validation;
  double measured[2] = {validation_seconds_, now_seconds() - start_};
  group_.broadcast(view_of(measured, {2}), 0, stream_);
  const double limit = config_.max_wall_seconds;
  const double affordable = kValidationShare * limit / std::max(measured[0], 1e-3);
  TimePlan plan;
  plan.validations = std::clamp<int64_t>(static_cast<int64_t>(affordable), 1, kMaxValidations);
  const double available =
      kReserve * limit - static_cast<double>(plan.validations) * measured[0] - measured[1];
  plan.steps =
      std::clamp<int64_t>(static_cast<int64_t>(available / step_seconds), 1, config_.max_steps);
  if (group_.rank() == 0) {
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
  Progress progress("train", group_.rank() == 0, 30);
  std::string reason = reason_to_stop(false);
  while (reason.empty()) {
    const double learning_rate = learning_rate_at(config_, state_.step);
    const StepResult result = train_step(learning_rate);
    ++state_.step;
    state_.cursor = cursor_;
    state_.tokens += result.tokens;
    state_.step_seconds += result.seconds;
    state_.seconds = seconds_before_start_ + now_seconds() - start_;
    last_loss_ = result.loss;
    if (state_.step % config_.log_every_steps == 0 || state_.step == 1 ||
        state_.step == config_.max_steps) {
      log_step(result, learning_rate);
    }
    progress.update(state_.step, config_.max_steps,
                    "loss " + format_number(result.loss, 4) + "  " +
                        format_count(static_cast<int64_t>(static_cast<double>(state_.tokens) /
                                                          state_.step_seconds)) +
                        " tokens/s");
    const bool ends = result.out_of_time || state_.step == config_.max_steps;
    const int64_t every = config_.validation_every_steps;
    if (validate_ && every > 0 && (state_.step % every == 0 || ends)) {
      progress.clear();
      validate_now();
    }
    reason = reason_to_stop(result.out_of_time);
    const int64_t save_every = config_.checkpoint_every_steps;
    if (!reason.empty() || (save_every > 0 && state_.step % save_every == 0)) {
      state_.finished = !reason.empty() && !result.out_of_time;
      save_checkpoint();
    }
  }
  const json result = summary(reason);
  if (group_.rank() == 0) {
    write_text_file(fs::path(config_.output) / "summary.json", result.dump(2) + "\n");
  }
  group_.barrier();
  return result;
}

void Trainer::prepare_output(const std::string& config_text) {
  config_text_ = config_text;
  const fs::path output = config_.output;
  if (group_.rank() == 0) {
    const auto newest = newest_checkpoint(output);
    const bool has_metrics = fs::exists(output / "metrics.jsonl");
    if (newest ? !config_.resume || read_training_state(*newest).finished : has_metrics) {
      move_aside(output);
    }
    fs::create_directories(output / "checkpoints");
    write_text_file(output / "config.yaml", config_text);
  }
  group_.barrier();
  state_ = {};
  if (const auto newest = newest_checkpoint(output)) {
    state_ = read_training_state(*newest);
    read_checkpoint_tensors(
        *newest, model_.layout(),
        {optimizer_.master(model_.weights()), optimizer_.exp_avg(), optimizer_.exp_avg_sq()});
    optimizer_.round_weights(model_.weights(), stream_);
    if (group_.rank() == 0) {
      truncate_metrics(output / "metrics.jsonl", state_.step);
      spdlog::info("resume from {}", newest->string());
    }
  }
  seek(state_.cursor);
  seconds_before_start_ = state_.seconds;
}

void Trainer::validate_now() {
  const double start = now_seconds();
  const ValidationFigures figures = validate_();
  validation_seconds_ = now_seconds() - start;
  state_.seconds = seconds_before_start_ + now_seconds() - start_;
  const bool is_best = figures.ndcg_at_10 > state_.best_ndcg;
  if (is_best) {
    state_.best_ndcg = figures.ndcg_at_10;
    state_.best_recall = figures.recall_at_10;
    state_.best_step = state_.step;
    state_.validations_since_best = 0;
    save_checkpoint();
  } else {
    ++state_.validations_since_best;
  }
  if (group_.rank() != 0) return;
  if (is_best) mark_best_checkpoint(config_.output, state_.step);
  log_metrics({{"step", state_.step},
               {"validation",
                {{"recall@10", figures.recall_at_10},
                 {"ndcg@10", figures.ndcg_at_10},
                 {"seconds", validation_seconds_}}}});
  spdlog::info("step {}: loss {:.4f}, validation recall@10 {:.4f}, NDCG@10 {:.4f}{}", state_.step,
               last_loss_, figures.recall_at_10, figures.ndcg_at_10, is_best ? " (best)" : "");
}

void Trainer::save_checkpoint() {
  const double start = now_seconds();
  if (group_.rank() == 0) {
    write_checkpoint(
        checkpoint_folder(config_.output, state_.step), state_, model_.layout(),
        {optimizer_.master(model_.weights()), optimizer_.exp_avg(), optimizer_.exp_avg_sq()},
        config_text_, tokenizer_file_);
    remove_old_checkpoints(config_.output, config_.keep_checkpoints);
  }
  group_.barrier();
  checkpoint_seconds_ = now_seconds() - start;
}

void Trainer::log_step(const StepResult& result, double learning_rate) {
  if (group_.rank() != 0) return;
  log_metrics({{"step", state_.step},
               {"loss", result.loss},
               {"learning_rate", learning_rate},
               {"grad_norm", result.grad_norm},
               {"tokens", state_.tokens},
               {"tokens_per_second", static_cast<double>(result.tokens) / result.seconds},
               {"seconds", state_.seconds},
               {"epoch", state_.cursor.epoch}});
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
  if (state_.finished || state_.step >= config_.max_steps) return "max_steps";
  if (out_of_time) return "max_wall_seconds";
  if (config_.early_stop_patience > 0 &&
      state_.validations_since_best >= config_.early_stop_patience) {
    return "early_stop";
  }
  return "";
}

json Trainer::summary(const std::string& reason) const {
  return {{"train_steps", state_.step},
          {"train_seconds", state_.seconds},
          {"step_seconds", state_.step_seconds},
          {"train_tokens", state_.tokens},
          {"tokens_per_second",
           state_.step_seconds > 0 ? static_cast<double>(state_.tokens) / state_.step_seconds : 0},
          {"stopped_by", reason},
          {"final_loss", last_loss_},
          {"best_step", state_.best_step},
          {"best_validation_recall@10", state_.best_recall},
          {"best_validation_ndcg@10", state_.best_ndcg},
          {"ranks", group_.size()},
          {"version", MIRABELLE_VERSION}};
}

}  // namespace mirabelle
