// A job that looks at itself, for preflight_test.cpp:
//   preflight_program groups TENSOR_PARALLEL_SIZE
//   preflight_program room FOLDER CHECKPOINTS BYTES
#include <iostream>

#include "mirabelle/config/command_line.h"
#include "mirabelle/config/preflight.h"

int main(int argc, char** argv) {
  using namespace mirabelle;
  return run_main(argc, argv, "plum", [&](const Communicator& world) {
    const std::string what = argv[1];
    if (what == "groups") {
      const ParallelContext ranks = checked_groups(world, std::stoll(argv[2]), Device::kCpu);
      std::cerr << ranks.tensor().size() * 10 + ranks.data().size() << "\n";
    } else {
      check_checkpoint_room(world, argv[2], std::stoll(argv[3]), std::stoll(argv[4]));
    }
    return 0;
  });
}
