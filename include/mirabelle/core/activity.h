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
/// Work of its own that takes as long it only reports, once, since it may be alive:
///
///   rank 0: has been for 60 s in step 123, checkpoint
///
/// The exit status of the first is 1. The second ends half a second after its line. Where there are
/// StopSignals, SIGTERM is theirs.
///
/// On a thread of its own. Time in which the whole process is suspended does not count. A program
/// may make one before it knows its timeout, and another within, whose timeout counts from then on,
/// also when it has gone.
class Watchdog {
 public:
  /// Of a single wait; 0: any is fine. A negative rank is not known yet.
  Watchdog(double timeout_seconds, int rank);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  struct sigaction previous_ = {};  // of SIGTERM, unless that is the StopSignals'
  std::jthread thread_;
};

/// While it lives, SIGTERM and SIGUSR1 ask the process to stop, where they would end it:
///
///   rank 1: SIGTERM while in step 123, forward; stops as soon as it can
///
/// The next such signal, more than a second after the first (mpirun sends SIGTERM twice in a row),
/// ends it as SIGTERM does with a Watchdog alone. One per process, which outlives the Watchdog;
/// made before MPI is started, so that no moment is without it.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  /// From now on they do nothing: all is done, and when a rank has ended with an exit status other
  /// than 0, mpirun sends SIGTERM to those that are about to.
  void ignore();

 private:
  struct sigaction previous_sigterm_ = {}, previous_sigusr1_ = {};
};

/// Whether one has come since the StopSignals were made.
bool stop_is_requested();

}  // namespace mirabelle
