#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "mirabelle/comm/communicator.h"
#include "mirabelle/config/yaml_reader.h"

namespace CLI {
class App;
}

namespace mirabelle {

/// What every executable's command line has: --help, --version and --json FILE, and, if it has
/// configuration sections, --config FILE, --set section.key=value and --print-config.
///
///   int main(int argc, char** argv) {
///     return run_main(argc, argv, "mirabelle-train", [&](const Communicator& world) {
///       Config config;
///       CommandLine command_line("mirabelle-train", "Trains a model on a corpus.",
///                                "mpirun -n 2 mirabelle-train --config train.yaml",
///                                config.sections());
///       command_line.app().add_flag("--benchmark", benchmark, "...");  // CLI/CLI.hpp
///       if (const auto status = command_line.parse(argc, argv, world)) return *status;
///       ...
///       command_line.write_result(result);
///       return 0;
///     });
///   }
class CommandLine {
 public:
  /// `summary`: what the program does, a sentence or a paragraph. `examples`: command lines, one a
  /// line, shown at the end of --help.
  CommandLine(std::string name, const std::string& summary, const std::string& examples,
              std::vector<ConfigSection> sections = {});
  ~CommandLine();

  /// For options and subcommands of one's own. The shared options may stand before or after a
  /// subcommand.
  CLI::App& app() { return *app_; }

  /// For programs whose configuration starts from another one than the defaults: `base` is called
  /// once the file and the overrides were read, may set every section anew by what they said, and
  /// then they are laid over it. An Error of its own that is not of usage leaves `parse`.
  void set_base(std::function<void()> base) { base_ = std::move(base); }

  /// Reads the command line, then the file, then the overrides into the sections and checks each. A
  /// value is the exit status with which all ranks shall end at once: --help, --version and
  /// --print-config were answered (0), or some rank's command line or configuration was refused
  /// (2). Only rank 0 prints. Collective.
  std::optional<int> parse(int argc, char** argv, const Communicator& world);

  /// Writes the file of --json, if it was given.
  void write_result(const nlohmann::json& result) const;

 private:
  std::string answer_or_read(int argc, char** argv);
  void read_sections();

  std::string name_;
  std::unique_ptr<CLI::App> app_;
  std::vector<ConfigSection> sections_;
  std::function<void()> base_;
  std::string config_file_;
  std::vector<std::string> overrides_;
  std::string json_file_;
  bool print_config_ = false;
};

/// Runs an executable's body on all ranks of the job and returns the exit status: the body's (0, or
/// kExitStopped), or after an exception 1, 2 or 3 (ErrorKind) with one line on standard error,
///   mirabelle-train: rank 3: wanted ..., got ...
/// The other ranks of the job are ended too, so that none waits in a collective for ever.
int run_main(int argc, char** argv, const std::string& name,
             const std::function<int(const Communicator& world)>& body);

/// The same for an executable that is always one process: no MPI is started.
int run_serial_main(const std::string& name,
                    const std::function<int(const Communicator& self)>& body);

/// Atomically replaces the file, indented by two.
void write_json_result(const std::string& path, const nlohmann::json& result);

}  // namespace mirabelle
