// Runs run_main_program alone and under mpirun, and looks at exit status and output.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "mirabelle/core/files.h"

namespace mirabelle {
namespace {

struct Outcome {
  int exit_status;
  std::string out, err;
  /// The lines of standard error that the program wrote, without those of mpirun.
  std::vector<std::string> own_lines() const {
    std::vector<std::string> lines;
    for (size_t begin = 0; begin < err.size();) {
      const size_t end = std::min(err.find('\n', begin), err.size());
      if (err.compare(begin, 5, "plum:") == 0) lines.push_back(err.substr(begin, end - begin));
      begin = end + 1;
    }
    return lines;
  }
};

using Lines = std::vector<std::string>;

class RunMainTest : public ::testing::Test {
 protected:
  RunMainTest() {
    folder_ = std::filesystem::temp_directory_path() /
              ("mirabelle_run_main_test_" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
  }
  ~RunMainTest() override { std::filesystem::remove_all(folder_); }

  Outcome shell(const std::string& command) {
    const std::string out = folder_ / "out", err = folder_ / "err";
    const int status = std::system((command + " >" + out + " 2>" + err).c_str());
    return {WEXITSTATUS(status), read_text_file(out), read_text_file(err)};
  }
  Outcome run(const std::string& arguments) {
    return shell(std::string(RUN_MAIN_PROGRAM) + " " + arguments);
  }
  Outcome run_on(int ranks, const std::string& arguments) {
    return shell("OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 timeout 60 " MPIEXEC
                 " -n " +
                 std::to_string(ranks) + " --oversubscribe --bind-to none " RUN_MAIN_PROGRAM " " +
                 arguments);
  }

  std::filesystem::path folder_;
};

TEST_F(RunMainTest, ExitStatusAndLineTellWhatFailed) {
  const struct {
    const char* how;
    int exit_status;
    const char* line;
  } cases[] = {{"usage", 2, "plum: the hedge is too high"},
               {"data", 3, "plum: plums.csv:7: a stone"},
               {"other", 1, "plum: frost"},
               {"memory", 1, "plum: out of memory"},
               {"standard", 1, "plum: two; lines"},
               {"unknown", 1, "plum: an exception of unknown type"}};
  for (const auto& expected : cases) {
    for (const std::string mode : {"serial", ""}) {
      const Outcome outcome = run(mode + " --fail " + expected.how);
      EXPECT_EQ(outcome.exit_status, expected.exit_status) << expected.how;
      EXPECT_EQ(outcome.err, expected.line + std::string("\n"));
      EXPECT_EQ(outcome.out, "");
    }
  }
}

TEST_F(RunMainTest, ReturnsTheStatusOfTheBody) {
  EXPECT_EQ(run("serial").exit_status, 0);
  EXPECT_EQ(run("serial").out, "self 1 12\n");
  EXPECT_EQ(run("").out, "mpi 1 12\n");
  EXPECT_EQ(run_on(2, "--set orchard.num_trees=4").out, "mpi 2 4\n");
}

TEST_F(RunMainTest, OneRankThatFailsEndsTheJob) {
  const auto start = std::chrono::steady_clock::now();
  const Outcome outcome = run_on(3, "--fail data --on 2");
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  EXPECT_EQ(outcome.exit_status, 3);
  EXPECT_EQ(outcome.own_lines(), (Lines{"plum: rank 2: plums.csv:7: a stone"})) << outcome.err;
  EXPECT_LT(seconds.count(), 30);
}

TEST_F(RunMainTest, OneLineIsEnoughWhenAllRanksFailAlike) {
  const Outcome outcome = run_on(3, "--fail usage");
  EXPECT_EQ(outcome.exit_status, 2);
  EXPECT_EQ(outcome.own_lines(), (Lines{"plum: rank 0: the hedge is too high"})) << outcome.err;
}

TEST_F(RunMainTest, UsageErrorsAreOneLineWithAHint) {
  const Outcome alone = run("--fial data");
  EXPECT_EQ(alone.exit_status, 2);
  EXPECT_EQ(alone.own_lines().size(), 1u);
  EXPECT_NE(alone.err.find("--fial"), std::string::npos) << alone.err;
  EXPECT_NE(alone.err.find("(see plum --help)\n"), std::string::npos) << alone.err;
  const Outcome three = run_on(3, "--fial data");
  EXPECT_EQ(three.exit_status, 2);
  EXPECT_EQ(three.own_lines(), alone.own_lines());
}

TEST_F(RunMainTest, ConfigurationErrorsEndAllRanksAlike) {
  const Outcome outcome = run_on(2, "--set orchard.num_trees=0");
  EXPECT_EQ(outcome.exit_status, 2);
  EXPECT_EQ(outcome.own_lines(), (Lines{"plum: orchard.num_trees must be positive, not 0"}));
}

TEST_F(RunMainTest, AConfigurationThatOneRankCannotReadEndsAll) {
  // rank 1 gets another command line, as if the file were missing on its node
  const std::string program = RUN_MAIN_PROGRAM;
  const Outcome outcome =
      shell("OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 timeout 60 " MPIEXEC
            " --oversubscribe --bind-to none -n 1 " +
            program + " : -n 1 " + program + " --config /nowhere.yaml");
  EXPECT_EQ(outcome.exit_status, 2);
  EXPECT_EQ(outcome.own_lines(), (Lines{"plum: rank 1: /nowhere.yaml: no such file"}));
}

TEST_F(RunMainTest, AConfigurationThatIsAnotherOnOneRankEndsAll) {
  const std::string program = RUN_MAIN_PROGRAM;
  const Outcome outcome =
      shell("OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 timeout 60 " MPIEXEC
            " --oversubscribe --bind-to none -n 2 " +
            program + " : -n 1 " + program + " --set orchard.num_trees=13");
  EXPECT_EQ(outcome.exit_status, 2);
  ASSERT_EQ(outcome.own_lines().size(), 1u) << outcome.err;
  const std::string line = outcome.own_lines().front();
  EXPECT_EQ(line.find("plum: rank 0: rank 2 on "), 0u) << line;
  EXPECT_NE(line.find(" has another configuration than rank 0: 'num_trees: 13', there "
                      "'num_trees: 12'; copy the same file to every host"),
            std::string::npos)
      << line;
}

TEST_F(RunMainTest, OnlyRankZeroAnswersHelpAndVersion) {
  EXPECT_EQ(run("--version").out, "plum " MIRABELLE_VERSION "\n");
  EXPECT_EQ(run_on(3, "--version").out, "plum " MIRABELLE_VERSION "\n");
  const Outcome help = run_on(3, "--help");
  EXPECT_EQ(help.exit_status, 0);
  EXPECT_EQ(help.out, run("--help").out);
}

TEST_F(RunMainTest, HelpTeaches) {
  const std::string help = run("serial --help").out;
  for (const char* part :
       {"Fails as it is told.", "--config FILE", "--set section.key=value", "--json FILE",
        "--print-config", "--version", "Examples:", "  plum --fail data\n  plum --json x"}) {
    EXPECT_NE(help.find(part), std::string::npos) << part << " in\n" << help;
  }
}

TEST_F(RunMainTest, PrintConfigShowsWhatWouldBeUsed) {
  write_text_file(folder_ / "c.yaml", "orchard: {num_trees: 5}");
  const std::string config = "serial --config " + (folder_ / "c.yaml").string();
  EXPECT_EQ(run(config + " --print-config").out,
            "orchard:\n  num_trees: 5                      # trees that bear fruit\n");
  EXPECT_EQ(run(config + " --set orchard.num_trees=6 --set orchard.num_trees=7").out, "self 1 7\n");
  EXPECT_EQ(run("serial --print-config").out.find("orchard:\n  num_trees: 12 "), 0u);
}

TEST_F(RunMainTest, WritesTheResultForMachines) {
  const std::filesystem::path path = folder_ / "new" / "result.json";
  EXPECT_EQ(run("serial --json " + path.string()).exit_status, 0);
  const nlohmann::json result = nlohmann::json::parse(read_text_file(path));
  EXPECT_EQ(result.at("num_trees"), 12);
  EXPECT_EQ(result.at("rate"), 0.1);
}

TEST_F(RunMainTest, AResultThatCannotBeWrittenIsAnError) {
  write_text_file(folder_ / "file", "");
  const Outcome outcome = run("serial --json " + (folder_ / "file" / "result.json").string());
  EXPECT_EQ(outcome.exit_status, 1);
  EXPECT_NE(outcome.err.find("plum: " + (folder_ / "file").string()), std::string::npos)
      << outcome.err;
}

}  // namespace
}  // namespace mirabelle
