#pragma once

#include <csignal>
#include <cstdint>
#include <string>
#include <thread>

namespace mirabelle {

/// What the process is doing, for the last line of a job that breaks. The main thread alone makes
/// activities; they nest. Cheap: a few dozen stores.
///
///   const Activity activity("forward");
///   const Activity wait("all_reduce", "tensor-parallel");
///
/// One with a group waits for other ranks: the Watchdog limits how long. Texts are cut to 31
/// characters; deeper than 8 activities they are only counted.
class Activity {
 public:
  explicit Activity(const char* what, const std::string& group = {});
  ~Activity();
  Activity(const Activity&) = delete;
  Activity& operator=(const Activity&) = delete;
};

/// The optimizer step that the process works on; negative (at the start): none.
void set_current_step(int64_t step);

/// "step 123, forward, all_reduce of the tensor-parallel group"; "" if nothing is known.
std::string current_activity();

/// Ends the process, with a line on standard error, when it waits for other ranks in vain, and says
/// what it was doing when SIGTERM ends it, which is what mpirun sends to all ranks after one
/// failed:
///
///   rank 3: waited 60 s in all_reduce of the data-parallel group at step 123; a rank of it is ...
///   rank 1: ended by SIGTERM while in step 123, forward
///
/// The exit status of the first is 1. The second ends half a second after its line.
///
/// One per process, on a thread of its own. Time in which the whole process is suspended does not
/// count.
class Watchdog {
 public:
  /// Of a single wait; 0: any is fine.
  Watchdog(double timeout_seconds, int rank);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  struct sigaction previous_ = {};  // of SIGTERM
  std::jthread thread_;
};

}  // namespace mirabelle
