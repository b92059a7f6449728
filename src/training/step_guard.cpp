#include "mirabelle/training/step_guard.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>

namespace mirabelle {

double max_good_norm(const TrainingConfig& config, const TrainingState& state) {
  const bool is_limited = config.spike_factor > 0 && state.good_steps >= config.spike_warmup_steps;
  return is_limited ? config.spike_factor * state.mean_grad_norm
                    : std::numeric_limits<double>::max();
}

void count_good_step(TrainingState& state, double grad_norm) {
  constexpr int64_t kWindow = 100;
  ++state.good_steps;
  state.mean_grad_norm +=
      (grad_norm - state.mean_grad_norm) / static_cast<double>(std::min(state.good_steps, kWindow));
  state.bad_steps_in_row = 0;
}

void count_bad_step(TrainingState& state) {
  ++state.skipped_steps;
  ++state.bad_steps;
  ++state.bad_steps_in_row;
}

std::string describe_bad_step(double loss, double grad_norm, double max_good_norm) {
  std::ostringstream text;
  const auto unsigned_nan = [](double value) {
    return std::isnan(value) ? std::fabs(value) : value;
  };
  text << "the loss is " << unsigned_nan(loss) << ", the gradient's norm "
       << unsigned_nan(grad_norm);
  if (max_good_norm < std::numeric_limits<double>::max())
    text << ", at most " << max_good_norm << " is good";
  return text.str();
}

}  // namespace mirabelle
