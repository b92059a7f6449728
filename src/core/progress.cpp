#include "mirabelle/core/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <sstream>

#include "mirabelle/core/table.h"

namespace mirabelle {
namespace {

constexpr double kSecondsBetweenRewrites = 0.1;

/// A line that wraps cannot be rewritten, so it is cut to the terminal's width.
std::string cut_to_terminal(std::string line) {
  winsize size{};
  if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return line;
  while (display_width(line) >= size.ws_col) {
    while ((static_cast<unsigned char>(line.back()) & 0xC0) == 0x80) line.pop_back();
    line.pop_back();
  }
  return line;
}

}  // namespace

std::string format_duration(double seconds) {
  const auto total = static_cast<int64_t>(std::llround(std::clamp(seconds, 0.0, 1e12)));
  char text[40];
  if (total < 3600) {
    std::snprintf(text, sizeof text, "%d:%02d", static_cast<int>(total / 60),
                  static_cast<int>(total % 60));
  } else {
    std::snprintf(text, sizeof text, "%lld:%02d:%02d", static_cast<long long>(total / 3600),
                  static_cast<int>(total / 60 % 60), static_cast<int>(total % 60));
  }
  return text;
}

std::string format_count(int64_t value) {
  std::string digits = std::to_string(value);
  const int64_t first_digit = value < 0 ? 1 : 0;
  for (int64_t i = static_cast<int64_t>(digits.size()) - 3; i > first_digit; i -= 3) {
    digits.insert(static_cast<size_t>(i), 1, ',');
  }
  return digits;
}

std::string progress_line(const std::string& label, int64_t done, int64_t total, int64_t first_done,
                          double seconds, const std::string& text) {
  const double rate = seconds > 0 ? static_cast<double>(done - first_done) / seconds : 0;
  std::ostringstream line;
  line << label << "  ";
  if (total > 0) line << 100 * done / total << "%  ";
  line << format_count(done);
  if (total > 0) line << '/' << format_count(total);
  if (rate > 0) {
    line << "  "
         << (rate < 100 ? format_number(rate, rate < 10 ? 2 : 1) : format_count(std::llround(rate)))
         << "/s";
    if (total > done) line << "  " << format_duration((total - done) / rate) << " left";
  }
  if (!text.empty()) line << "  " << text;
  return line.str();
}

Progress::Progress(std::string label, bool enabled, double seconds_between_lines)
    : Progress(std::move(label), std::cerr, ::isatty(STDERR_FILENO) == 1, seconds_between_lines) {
  if (!enabled) out_ = nullptr;
}

Progress::Progress(std::string label, std::ostream& out, bool rewrite, double seconds_between_lines)
    : label_(std::move(label)),
      out_(&out),
      rewrite_(rewrite),
      seconds_between_(rewrite ? kSecondsBetweenRewrites : seconds_between_lines) {}

Progress::~Progress() { clear(); }

void Progress::update(int64_t done, int64_t total, const std::string& text) {
  if (!out_) return;
  const Clock::time_point now = Clock::now();
  if (!started_) {
    started_ = true;
    first_done_ = done;
    start_ = last_shown_ = now;
  }
  const std::chrono::duration<double> since_shown = now - last_shown_;
  if (since_shown.count() < seconds_between_ && done != total) return;
  last_shown_ = now;
  const std::chrono::duration<double> elapsed = now - start_;
  const std::string line = progress_line(label_, done, total, first_done_, elapsed.count(), text);
  if (rewrite_) {
    *out_ << '\r' << cut_to_terminal(line) << "\033[K" << std::flush;
    line_shown_ = true;
  } else {
    *out_ << line << std::endl;
  }
}

void Progress::clear() {
  if (line_shown_) *out_ << "\r\033[K" << std::flush;
  line_shown_ = false;
}

}  // namespace mirabelle
