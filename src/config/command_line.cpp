#include "mirabelle/config/command_line.h"

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <new>
#include <thread>

#include "mirabelle/config/preflight.h"
#include "mirabelle/core/activity.h"
#include "mirabelle/core/error.h"
#include "mirabelle/core/files.h"
#include "mirabelle/core/logging.h"

namespace mirabelle {
namespace {

/// Of MPI_Init: a host may have to load the program first.
constexpr double kStartTimeoutSeconds = 600;

struct Failure {
  int exit_status;
  std::string message;
};

/// What the exception that is being handled means.
Failure current_failure() {
  try {
    throw;
  } catch (const Error& error) {
    return {static_cast<int>(error.kind()), error.what()};
  } catch (const std::bad_alloc&) {
    return {1, "out of memory"};
  } catch (const std::exception& error) {
    return {1, error.what()};
  } catch (...) {
    return {1, "an exception of unknown type"};
  }
}

/// One write of one line, so that the lines of several ranks do not mix.
void print_line(const std::string& name, int rank, int size, std::string message) {
  while (!message.empty() && message.back() == '\n') message.pop_back();
  for (size_t at; (at = message.find('\n')) != std::string::npos;) message.replace(at, 1, "; ");
  const std::string who = size > 1 ? name + ": rank " + std::to_string(rank) : name;
  std::cerr << who + ": " + message + '\n' << std::flush;
}

/// Before a configuration says how long ranks may wait for each other.
void check_start(const Communicator& world) {
  constexpr double kTimeoutSeconds = 120;  // a firewall may swallow the first message
  if (world.size() == 1) return;
  const Watchdog watchdog(kTimeoutSeconds, world.rank());
  check_same_program(world);
}

int run_body(const std::string& name, const Communicator& world,
             const std::function<int(const Communicator&)>& body) {
  try {
    configure_logging(world.rank());
    check_start(world);
    return body(world);
  } catch (...) {
    const Failure failure = current_failure();
    // Most failures happen on all ranks at once. Rank 0 speaks first, and its abort silences the
    // others, so that there is one line and not one per rank.
    if (world.rank() > 0) std::this_thread::sleep_for(std::chrono::milliseconds(300));
    print_line(name, world.rank(), world.size(), failure.message);
    if (world.size() > 1) abort_job(failure.exit_status);
    return failure.exit_status;
  }
}

}  // namespace

CommandLine::CommandLine(std::string name, const std::string& summary, const std::string& examples,
                         std::vector<ConfigSection> sections)
    : name_(std::move(name)),
      app_(std::make_unique<CLI::App>(summary, name_)),
      sections_(std::move(sections)) {
  app_->fallthrough();
  app_->set_version_flag("--version", name_ + " " MIRABELLE_VERSION, "Print the version and exit");
  app_->add_option("--json", json_file_, "Write the result to this file, for machines")
      ->type_name("FILE");
  if (!sections_.empty()) {
    app_->add_option("--config", config_file_, "Read the configuration from this YAML file")
        ->type_name("FILE");
    app_->add_option("--set", overrides_,
                     "Override one key of the configuration; may be repeated, the last one counts")
        ->type_name("section.key=value")
        ->take_all()
        ->expected(1)
        ->allow_extra_args(false);
    app_->add_flag("--print-config", print_config_,
                   "Print every key with its value and meaning as YAML, ready for --config, and "
                   "exit");
  }
  if (!examples.empty()) {
    std::string footer = "Examples:\n  ";
    for (const char c : examples) footer += c == '\n' ? "\n  " : std::string(1, c);
    app_->footer(footer);
  }
}

CommandLine::~CommandLine() = default;

/// Parses the command line and reads the configuration. Returns what --help, --version or
/// --print-config want printed, or nothing.
std::string CommandLine::answer_or_read(int argc, char** argv) {
  try {
    app_->parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    return app_->help();
  } catch (const CLI::CallForAllHelp&) {
    return app_->help("", CLI::AppFormatMode::All);
  } catch (const CLI::CallForVersion&) {
    return app_->version() + "\n";
  } catch (const CLI::ParseError& error) {
    throw_error(ErrorKind::kUsage, error.what(), " (see ", name_, " --help)");
  }
  read_sections();
  if (base_) {
    base_();
    read_sections();
  }
  return print_config_ ? to_yaml(sections_, true) : "";
}

void CommandLine::read_sections() {
  if (!config_file_.empty()) read_yaml_file(config_file_, sections_);
  for (const std::string& assignment : overrides_) apply_override(assignment, sections_);
  for (const ConfigSection& section : sections_) section.check();
}

std::optional<int> CommandLine::parse(int argc, char** argv, const Communicator& world) {
  std::string answer, refusal;
  try {
    answer = answer_or_read(argc, argv);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kUsage) throw;
    refusal = error.what();
  }
  // The ranks agree before any of them ends: a file may be missing on one node only.
  const std::vector<std::string> refusals = all_gather_texts(world, refusal);
  for (int rank = 0; rank < world.size(); ++rank) {
    if (refusals[rank].empty()) continue;
    // rank 0 usually speaks for all, then its number would only puzzle
    if (world.rank() == 0) print_line(name_, rank, rank == 0 ? 1 : world.size(), refusals[rank]);
    return static_cast<int>(ErrorKind::kUsage);
  }
  if (answer.empty()) {
    check_same_configuration(world, to_yaml(sections_, false));
    return std::nullopt;
  }
  if (world.rank() == 0) std::cout << answer << std::flush;
  return 0;
}

void CommandLine::write_result(const nlohmann::json& result) const {
  if (!json_file_.empty()) write_json_result(json_file_, result);
}

int run_main(int argc, char** argv, const std::string& name,
             const std::function<int(const Communicator&)>& body) {
  try {
    const Watchdog watchdog(kStartTimeoutSeconds, -1);
    const MpiSession session(&argc, &argv);
    const std::unique_ptr<Communicator> world = make_mpi_communicator();
    return run_body(name, *world, [&](const Communicator& all) {
      const Watchdog any_wait(0, all.rank());  // unless the program limits it
      return body(all);
    });
  } catch (...) {
    const Failure failure = current_failure();
    print_line(name, 0, 1, failure.message);
    return failure.exit_status;
  }
}

int run_serial_main(const std::string& name, const std::function<int(const Communicator&)>& body) {
  const std::unique_ptr<Communicator> self = make_self_communicator();
  return run_body(name, *self, body);
}

void write_json_result(const std::string& path, const nlohmann::json& result) {
  write_text_file(path, result.dump(2) + "\n");
}

}  // namespace mirabelle
