// An executable that fails as it is told, for run_main_test.cpp.
#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>
#include <new>
#include <stdexcept>

#include "mirabelle/config/command_line.h"
#include "mirabelle/core/error.h"

namespace {

using namespace mirabelle;

struct Orchard {
  int64_t num_trees = 12;
  void visit(ConfigFields& fields) {
    fields.field("num_trees", num_trees, "trees that bear fruit");
  }
  void check() const {
    MIRABELLE_CHECK_USAGE(num_trees > 0, "orchard.num_trees must be positive, not ", num_trees);
  }
};

void fail(const std::string& how) {
  if (how == "usage") throw_error(ErrorKind::kUsage, "the hedge is too high");
  if (how == "data") throw_error(ErrorKind::kData, "plums.csv:7: a stone");
  if (how == "other") throw_error(ErrorKind::kOther, "frost");
  if (how == "memory") throw std::bad_alloc();
  if (how == "standard") throw std::runtime_error("two\nlines\n");
  if (how == "unknown") throw 3;
}

}  // namespace

int main(int argc, char** argv) {
  const auto body = [&](const Communicator& world) {
    Orchard orchard;
    std::string how, only_config;
    int on = -1;
    CommandLine command_line("plum", "Fails as it is told.", "plum --fail data\nplum --json x",
                             {config_section("orchard", orchard)});
    command_line.app().add_option("--fail", how, "How");
    command_line.app().add_option("--on", on, "Only on this rank");
    if (const auto status = command_line.parse(argc, argv, world)) return *status;
    if (on < 0 || on == world.rank()) fail(how);
    world.barrier();  // the ranks that did not fail wait here for ever, if they are left to
    if (world.rank() == 0) {
      std::cout << world.name() << " " << world.size() << " " << orchard.num_trees << std::endl;
      command_line.write_result({{"num_trees", orchard.num_trees}, {"rate", 0.1}});
    }
    return 0;
  };
  if (argc > 1 && std::string(argv[1]) == "serial") {
    --argc, ++argv;
    return run_serial_main("plum", body);
  }
  return run_main(argc, argv, "plum", body);
}
