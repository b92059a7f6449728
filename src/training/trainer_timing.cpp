// How the Trainer times steps, and what it fits into a time limit by that.
#include <algorithm>

#include "mirabelle/core/logging.h"
#include "mirabelle/training/trainer.h"
#include "now_seconds.h"

namespace mirabelle {

std::vector<Trainer::StepTiming> Trainer::time_steps(int64_t num_steps) {
  const DataCursor cursor = cursor_;
  std::vector<StepTiming> timings;
  is_timing_ = true;
  for (int64_t i = 0; i < num_steps; ++i) {
    const StepResult result = train_step(0);
    timings.push_back({result.seconds, result.tokens, result.flops});
  }
  is_timing_ = false;
  optimizer_.reset(stream_);
  gatherer_.finish(stream_);
  seek(cursor);
  return timings;
}

std::optional<Trainer::TimePlan> Trainer::plan_for_wall_time() {
  constexpr double kReserve = 0.93;  // shared machines slow down now and then
  constexpr double kValidationShare = 0.05;
  constexpr int64_t kMaxValidations = 10;
  time_is_budget_ = true;
  time_steps(2);  // warms up
  std::vector<double> seconds;
  while (seconds.size() < 5 || (seconds.size() < 100 && seconds.size() * seconds.front() <
                                                            0.02 * config_.max_wall_seconds)) {
    seconds.push_back(time_steps(1).front().seconds);
    ranks_.world().broadcast(view_of(&seconds.back(), {1}), 0, stream_);
    if (stops_now()) return std::nullopt;
  }
  std::nth_element(seconds.begin(), seconds.begin() + seconds.size() / 2, seconds.end());
  const double step_seconds = seconds[seconds.size() / 2];

  const double before_validation = now_seconds();
  if (validate_ && !validate_()) return std::nullopt;
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
  time_is_budget_ = true;
}

}  // namespace mirabelle
