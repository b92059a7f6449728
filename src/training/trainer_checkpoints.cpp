// The Trainer's output folder: what a run finds there, and the checkpoints that it writes.
#include "mirabelle/core/activity.h"
#include "mirabelle/core/copy.h"
#include "mirabelle/core/error.h"
#include "mirabelle/core/files.h"
#include "mirabelle/core/logging.h"
#include "mirabelle/training/trainer.h"
#include "now_seconds.h"

namespace mirabelle {
namespace fs = std::filesystem;

namespace {

/// Renames what an earlier run left, so that nothing is lost: previous-1, previous-2, ...
void move_aside(const fs::path& output) {
  fs::path target;
  for (int n = 1; fs::exists(target = output / ("previous-" + std::to_string(n))); ++n) continue;
  fs::create_directories(target);
  for (const char* name :
       {"checkpoints", "metrics.jsonl", "tensorboard", "summary.json", "config.yaml"}) {
    if (fs::exists(output / name)) fs::rename(output / name, target / name);
  }
  spdlog::info("moved the finished run in {} to {}", output.string(), target.string());
}

}  // namespace

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
  if (!newest.empty()) {
    load_checkpoint(newest);
  } else if (ranks_.world().rank() == 0) {
    metrics_.go_on_from(state_);
  }
  seek(state_.cursor);
  seconds_before_start_ = state_.seconds;
  is_saved_ = true;
}

void Trainer::load_checkpoint(const fs::path& folder) {
  const Activity activity("resume");
  state_ = read_training_state(folder);
  MIRABELLE_CHECK_USAGE(state_.optimizer == config_.optimizer, folder.string(),
                        ": has the state of training.optimizer ", state_.optimizer, ", with which ",
                        config_.optimizer, " cannot go on");
  if (!config_.adapts_prefixes()) state_.prefix_weights.clear();
  if (!validate_) state_.validation_is_owed = false;
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
  metrics_.go_on_from(state_);
  // It may have been put in place by a run that was killed before it could mark it.
  if (state_.best_step == state_.step) mark_best_checkpoint(config_.output, state_.step);
  spdlog::info("resume from {}", folder.string());
}

/// The weights and the state of the newest checkpoint, if there is one; but the data go on, and
/// what is counted of the whole run.
bool Trainer::go_to_newest_checkpoint() {
  const auto found = ranks_.world().rank() == 0 ? newest_checkpoint(config_.output) : std::nullopt;
  const std::string newest = broadcast_text(ranks_.world(), found ? found->string() : "", 0);
  if (newest.empty()) return false;
  gatherer_.finish(stream_);
  const TrainingState before = state_;
  load_checkpoint(newest);
  state_.cursor = before.cursor;
  state_.seconds = before.seconds;
  state_.step_seconds = before.step_seconds;
  state_.bad_steps = before.bad_steps;
  state_.rollbacks = before.rollbacks + 1;
  rollbacks_to_checkpoint_ = state_.step == rollback_step_ ? rollbacks_to_checkpoint_ + 1 : 1;
  rollback_step_ = state_.step;
  is_saved_ = false;
  return true;
}

/// Training goes on as soon as the tensors are in host memory; commit_checkpoint() ends it.
void Trainer::save_checkpoint(bool is_best) {
  const Activity activity("checkpoint");
  const PhaseClock clock(phase_seconds_.checkpoint);
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
  is_saved_ = true;
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

}  // namespace mirabelle
