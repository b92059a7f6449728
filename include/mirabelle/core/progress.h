#pragma once

#include <chrono>
#include <cstdint>
#include <ostream>
#include <string>

namespace mirabelle {

/// Shows how far a long loop is. On a terminal one line is rewritten, at most ten times a second:
///   train   42%  4,200/10,000  13.1/s  7:23 left  loss 5.12
/// otherwise plain lines appear, at most one every `seconds_between_lines`.
class Progress {
 public:
  /// Writes to standard error. Not `enabled` (on all ranks but the first): shows nothing.
  explicit Progress(std::string label, bool enabled = true, double seconds_between_lines = 10);
  /// The same to any stream; `rewrite` says whether it is a terminal.
  Progress(std::string label, std::ostream& out, bool rewrite, double seconds_between_lines);
  ~Progress();  ///< takes the rewritten line away
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// `total` 0 if unknown. The rate counts from the first update, so a resumed loop may start at
  /// any `done`. The last update (done == total) is always shown.
  void update(int64_t done, int64_t total, const std::string& text = "");
  /// Takes the rewritten line away, e.g. before something else is printed.
  void clear();

 private:
  using Clock = std::chrono::steady_clock;

  std::string label_;
  std::ostream* out_;  // null if not enabled
  bool rewrite_;
  double seconds_between_;
  bool started_ = false;
  bool line_shown_ = false;
  int64_t first_done_ = 0;
  Clock::time_point start_;
  Clock::time_point last_shown_;
};

/// The line that Progress shows: `done` of `total` reached in `seconds`, beginning at `first_done`.
std::string progress_line(const std::string& label, int64_t done, int64_t total, int64_t first_done,
                          double seconds, const std::string& text);

/// 75 is "1:15", 3700 is "1:01:40".
std::string format_duration(double seconds);
/// 1234567 is "1,234,567".
std::string format_count(int64_t value);

}  // namespace mirabelle
