// A job of four ranks, two for each copy of a model, of which one breaks as it is told in step 3,
// or at the end, for fault_test.cpp:  fault_program HOW RANK TIMEOUT_SECONDS
#include <unistd.h>

#include <csignal>
#include <vector>

#include "mirabelle/comm/parallel_context.h"
#include "mirabelle/config/command_line.h"
#include "mirabelle/core/activity.h"

namespace {

using namespace mirabelle;

void fail(const std::string& how) {
  if (how == "throw") throw_error(ErrorKind::kOther, "frost");
  if (how == "kill") std::raise(SIGKILL);
  if (how == "stall") {
    while (true) ::pause();
  }
}

void run_step(const ParallelContext& parallel, const std::string& how, bool fails) {
  std::vector<float> x(100000);
  {
    const Activity activity("forward");
    if (fails) fail(how);
    parallel.tensor().all_reduce(view_of(x), ReduceOp::kSum, Stream());
  }
  parallel.data().all_reduce(view_of(x), ReduceOp::kSum, Stream());
}

}  // namespace

int main(int argc, char** argv) {
  return run_main(argc, argv, "plum", [&](const Communicator& world) {
    const Watchdog watchdog(std::stod(argv[3]), world.rank());
    const ParallelContext parallel(world, 2);
    for (int64_t step = 0; step < 5; ++step) {
      set_current_step(step);
      run_step(parallel, argv[1], step == 3 && world.rank() == std::stoi(argv[2]));
    }
    if (std::string(argv[1]) == "stall-at-end" && world.rank() == std::stoi(argv[2])) fail("stall");
    return 0;
  });
}
