#include "mirabelle/core/activity.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <ctime>
#include <mutex>
#include <utility>

#include "mirabelle/core/error.h"

namespace mirabelle {
namespace {

constexpr int kMaxDepth = 8;
constexpr size_t kTextBytes = 32;

/// A short text that another thread or a signal handler may read while it changes; then it may be
/// mixed of both, but ends.
class Text {
 public:
  void set(const char* text) {
    size_t i = 0;
    for (; text[i] && i + 1 < kTextBytes; ++i) chars_[i].store(text[i], std::memory_order_relaxed);
    chars_[i].store('\0', std::memory_order_relaxed);
  }
  bool empty() const { return chars_[0].load(std::memory_order_relaxed) == '\0'; }
  void copy_to(char (&to)[kTextBytes]) const {
    for (size_t i = 0; i < kTextBytes; ++i) to[i] = chars_[i].load(std::memory_order_relaxed);
    to[kTextBytes - 1] = '\0';
  }

 private:
  std::atomic<char> chars_[kTextBytes];
};

struct Entry {
  Text what, group;
  std::atomic<int64_t> number;  // of all activities so far
};

/// Written by the main thread, read by the watchdog's and by the signal handler.
struct Board {
  Entry entries[kMaxDepth];
  std::atomic<int> depth{0};
  std::atomic<int64_t> num_activities{0};
  std::atomic<int64_t> step{-1};
  std::atomic<int> rank{-1};               // not known before there is a Watchdog
  std::atomic<double> timeout_seconds{0};  // of the newest Watchdog
  std::atomic<int> num_watchdogs{0};
  static_assert(std::atomic<int64_t>::is_always_lock_free);
};
constinit Board board;

/// A line that grows without allocating, for the signal handler.
class Line {
 public:
  Line& operator<<(const char* text) {
    for (; *text && size_ + 1 < sizeof text_; ++text) text_[size_++] = *text;
    text_[size_] = '\0';
    return *this;
  }
  Line& operator<<(const Text& text) {
    char copy[kTextBytes];
    text.copy_to(copy);
    return *this << copy;
  }
  Line& operator<<(int64_t number) {
    char digits[24];
    *std::to_chars(digits, digits + sizeof digits - 1, number).ptr = '\0';
    return *this << digits;
  }
  const char* text() const { return text_; }
  void print() {
    *this << "\n";
    [[maybe_unused]] const auto ignored = ::write(STDERR_FILENO, text_, size_);
  }

 private:
  char text_[1024] = {};
  size_t size_ = 0;
};

int known_depth() { return std::min(board.depth.load(std::memory_order_acquire), kMaxDepth); }

/// Adds "rank 1: " if it is known.
void add_rank(Line& line) {
  const int rank = board.rank;
  if (rank >= 0) line << "rank " << rank << ": ";
}

/// Adds "operation of the G group".
void add_wait(Line& line, const Entry& wait) {
  line << wait.what << " of the " << wait.group << " group";
}

/// Adds all that is known, behind `before` if that is anything.
void add_activities(Line& line, const char* before) {
  const int64_t step = board.step;
  if (step >= 0) line << before << "step " << step;
  if (step >= 0) before = ", ";
  for (int i = 0; i < known_depth(); ++i, before = ", ") {
    line << before;
    if (board.entries[i].group.empty()) {
      line << board.entries[i].what;
    } else {
      add_wait(line, board.entries[i]);
    }
  }
}

/// Whether the last line is being said: there is one, of the watchdog or on SIGTERM.
constinit std::atomic_flag is_ending;

/// mpirun, once it has sent SIGTERM, sends SIGKILL to all ranks as soon as one has ended, so each
/// leaves the others time for their lines.
constexpr timespec kTimeForOthers = {0, 500'000'000};

/// Adds "rank 1: SIGTERM".
void add_signal(Line& line, const char* before, int signal) {
  add_rank(line);
  line << before << (signal == SIGTERM ? "SIGTERM" : "SIGUSR1");
  add_activities(line, " while in ");
}

void end_by_signal(int signal) {
  if (is_ending.test_and_set()) return;  // mpirun may send it twice, and other threads get it too
  Line line;
  add_signal(line, "ended by ", signal);
  line.print();
  ::nanosleep(&kTimeForOthers, nullptr);
  std::signal(SIGTERM, SIG_DFL);
  std::raise(SIGTERM);
}

int64_t monotonic_nanoseconds() {
  timespec now;
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * int64_t{1'000'000'000} + now.tv_nsec;
}

/// When the first signal asked to stop; 0: none has.
constinit std::atomic<int64_t> stop_request{0};
constinit std::atomic<bool> has_stop_signals{false};

void request_stop(int signal) {
  constexpr int64_t kSameRequest = 1'000'000'000;  // nanoseconds
  const int64_t now = monotonic_nanoseconds();
  int64_t first = 0;
  if (!stop_request.compare_exchange_strong(first, now)) {
    if (now - first > kSameRequest) end_by_signal(signal);
    return;
  }
  Line line;
  add_signal(line, "", signal);
  line << "; stops as soon as it can";
  line.print();
}

struct sigaction set_handler(int signal, void (*handler)(int)) {
  struct sigaction action = {}, previous = {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;  // work that goes on is not disturbed
  ::sigaction(signal, &action, &previous);
  return previous;
}

/// The wait that the process is in, or null.
const Entry* current_wait() {
  for (int i = known_depth() - 1; i >= 0; --i) {
    if (!board.entries[i].group.empty()) return &board.entries[i];
  }
  return nullptr;
}

[[noreturn]] void end_process(const Entry& wait, double timeout_seconds) {
  char seconds[32];
  std::snprintf(seconds, sizeof seconds, "%g", timeout_seconds);
  Line line;
  add_rank(line);
  line << "waited " << seconds << " s in ";
  add_wait(line, wait);
  const int64_t step = board.step;
  if (step >= 0) line << " at step " << step;
  line << "; a rank of it is stalled or dead";
  line.print();
  ::_exit(1);
}

/// Work that takes so long may still be alive: a file system, or a computation that is just large.
void report_long_work(double seconds) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", seconds);
  Line line;
  add_rank(line);
  line << "has been for " << text << " s in ";
  add_activities(line, "");
  line.print();
}

void watch(const std::stop_token& stop, int number_of_watchdog) {
  std::mutex mutex;
  std::condition_variable_any wake;
  std::unique_lock lock(mutex);
  int64_t number = 0;  // of the innermost activity,
  double seconds = 0;  // in which the process has been for so long
  while (true) {
    const double timeout = board.timeout_seconds;
    const double interval = timeout > 0 ? std::min(1.0, timeout / 10) : 1.0;
    if (wake.wait_for(lock, stop, std::chrono::duration<double>(interval),
                      [&] { return stop.stop_requested(); })) {
      return;
    }
    if (board.num_watchdogs != number_of_watchdog) continue;  // a newer one watches
    const int depth = known_depth();
    const int64_t current = depth > 0 ? board.entries[depth - 1].number.load() : 0;
    const double before =
        std::exchange(seconds, depth > 0 && current == number ? seconds + interval : 0);
    number = current;
    if (timeout == 0 || seconds < timeout) continue;
    const Entry* const wait = current_wait();
    if (wait && !is_ending.test_and_set()) end_process(*wait, timeout);
    if (!wait && before < timeout) report_long_work(timeout);
  }
}

}  // namespace

Activity::Activity(const char* what, const std::string& group) {
  const int depth = board.depth;
  if (depth < kMaxDepth) {
    board.entries[depth].what.set(what);
    board.entries[depth].group.set(group.c_str());
    board.entries[depth].number = ++board.num_activities;
  }
  board.depth.store(depth + 1, std::memory_order_release);
}

Activity::~Activity() { --board.depth; }

void set_current_step(int64_t step) { board.step = step; }

std::string current_activity() {
  Line line;
  add_activities(line, "");
  return line.text();
}

Watchdog::Watchdog(double timeout_seconds, int rank) {
  MIRABELLE_CHECK(timeout_seconds >= 0, "a watchdog waits 0 seconds or more, not ",
                  timeout_seconds);
  board.rank = rank;
  if (!has_stop_signals) previous_ = set_handler(SIGTERM, end_by_signal);
  board.timeout_seconds = timeout_seconds;
  thread_ = std::jthread(watch, ++board.num_watchdogs);
}

Watchdog::~Watchdog() {
  --board.num_watchdogs;
  if (!has_stop_signals) ::sigaction(SIGTERM, &previous_, nullptr);
}

StopSignals::StopSignals() {
  has_stop_signals = true;
  previous_sigterm_ = set_handler(SIGTERM, request_stop);
  previous_sigusr1_ = set_handler(SIGUSR1, request_stop);
}

void StopSignals::ignore() {
  set_handler(SIGTERM, SIG_IGN);
  set_handler(SIGUSR1, SIG_IGN);
}

StopSignals::~StopSignals() {
  ::sigaction(SIGTERM, &previous_sigterm_, nullptr);
  ::sigaction(SIGUSR1, &previous_sigusr1_, nullptr);
  has_stop_signals = false;
  stop_request = 0;
}

bool stop_is_requested() { return stop_request != 0; }

}  // namespace mirabelle
