#pragma once

#include <chrono>
#include <nlohmann/json.hpp>

namespace mirabelle {

/// Wall time of the parts of training. On a GPU the host waits for the step's work at its end,
/// which counts as forward_backward.
struct PhaseSeconds {
  double load = 0, forward_backward = 0, optimizer = 0, validation = 0, checkpoint = 0;
};

inline nlohmann::json to_json(const PhaseSeconds& seconds) {
  return {{"load", seconds.load},
          {"forward_backward", seconds.forward_backward},
          {"optimizer", seconds.optimizer},
          {"validation", seconds.validation},
          {"checkpoint", seconds.checkpoint}};
}

/// Adds the time that it lives to a sum.
class PhaseClock {
 public:
  explicit PhaseClock(double& sum) : sum_(sum), start_(Clock::now()) {}
  ~PhaseClock() { sum_ += std::chrono::duration<double>(Clock::now() - start_).count(); }
  PhaseClock(const PhaseClock&) = delete;
  PhaseClock& operator=(const PhaseClock&) = delete;

 private:
  using Clock = std::chrono::steady_clock;
  double& sum_;
  Clock::time_point start_;
};

}  // namespace mirabelle
