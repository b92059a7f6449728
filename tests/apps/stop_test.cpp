// Signals to real training runs, at all times and on all layouts: what was stopped goes on to the
// bits of a run that nobody disturbed.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <csignal>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <thread>

#include "mirabelle/core/error.h"
#include "mirabelle/core/files.h"
#include "support/shared_gpus.h"
#include "support/temporary_folder.h"

namespace mirabelle {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

struct Layout {
  int ranks;
  std::string arguments;
};

const Layout kAlone = {1, ""};
const Layout kSharded = {2, " --set parallel.zero_stage=2"};
const Layout kGrid = {4,
                      " --set parallel.tensor_parallel_size=2 --set parallel.zero_stage=1 --set "
                      "parallel.sequence_parallel=true"};

class StopTest : public ::testing::Test {
 protected:
  StopTest() {
    folder.write("tiny.yaml", R"(
data: {corpus: corpus, history_length: 8}
tokenizer: {file: tokenizer.h5, levels: [12, 12]}
model: {hidden_size: 32, num_layers: 2, num_heads: 4, num_kv_heads: 2, ffn_hidden_size: 64, dropout: 0.1}
training: {output: run, max_steps: 40, warmup_steps: 5, learning_rate: 8.0e-3, reproducible: true,
           micro_batch_tokens: 256, global_batch_tokens: 2048, max_sequence_tokens: 60,
           log_every_steps: 1, validation_every_steps: 15, validation_users: 300,
           checkpoint_every_steps: 10}
evaluation: {batch_users: 1}
)");
    EXPECT_EQ(finish("mirabelle-data synth --output corpus --set synthetic.num_users=300 --set "
                     "synthetic.num_items=200 --set synthetic.branching=[4,4]"),
              0);
    EXPECT_EQ(finish("mirabelle-tokenizer-build --config tiny.yaml"), 0);
    EXPECT_EQ(finish("mirabelle-train --config tiny.yaml --set training.output=whole"), 0);
  }
  ~StopTest() override {
    if (shell_ > 0) wait_for_end();
  }

  int finish(const std::string& command) {
    start(command);
    return wait_for_end();
  }
  int train(const Layout& layout, const std::string& arguments = "") {
    start_training(layout, arguments);
    return wait_for_end();
  }
  void start_training(const Layout& layout, const std::string& arguments = "") {
    start("mirabelle-train --config tiny.yaml" + layout.arguments + " " + arguments, layout.ranks);
  }
  void start(const std::string& command, int ranks = 1) {
    const std::string launcher =
        ranks == 1 ? ""
                   : "mpirun -q --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 -n " +
                         std::to_string(ranks) + " ";
    const std::string line =
        "cd " + folder.path().string() + " && export " + marker() +
        " OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 && timeout "
        "200 " +
        launcher + MIRABELLE_BIN "/" + command + testing::shared_gpus(ranks) + " > out.txt 2>&1";
    shell_ = fork();
    if (shell_ == 0) {
      execl("/bin/sh", "sh", "-c", line.c_str(), nullptr);
      _exit(127);
    }
  }
  /// The exit status.
  int wait_for_end() {
    int status = 0;
    waitpid(std::exchange(shell_, 0), &status, 0);
    return WEXITSTATUS(status);
  }

  /// The process of that name in the job; `environment` is a part of its environment.
  pid_t process(const std::string& name, const std::string& environment = "") const {
    for (const auto& entry : fs::directory_iterator("/proc")) {
      const pid_t pid = std::atoi(entry.path().filename().c_str());
      const std::string variables = pid > 0 ? read(entry.path() / "environ") : "";
      if (variables.find(marker()) != std::string::npos &&
          variables.find(environment) != std::string::npos &&
          read(entry.path() / "comm") == name + "\n") {
        return pid;
      }
    }
    return 0;
  }
  pid_t rank(int rank) const {
    return process("mirabelle-train", "OMPI_COMM_WORLD_RANK=" + std::to_string(rank));
  }
  static bool catches_sigusr1(pid_t pid) {
    const std::string status = read("/proc/" + std::to_string(pid) + "/status");
    const size_t line = status.find("SigCgt:");
    return line != std::string::npos &&
           std::stoull(status.substr(line + 7), nullptr, 16) >> (SIGUSR1 - 1) & 1;
  }
  bool is_running() const {
    siginfo_t ended = {};
    return waitid(P_PID, shell_, &ended, WEXITED | WNOHANG | WNOWAIT) == 0 && ended.si_pid == 0;
  }
  bool wait_until(const std::function<bool()>& is_so) const {
    for (int wait = 0; wait < 60000; ++wait) {
      if (is_so()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return false;
  }
  void wait_for_step(int64_t step) {
    ASSERT_TRUE(wait_until([&] {
      return !losses("run").empty() && losses("run").back()[0] >= step;
    })) << output();
  }

  std::string output() const { return read(folder / "out.txt"); }
  bool says(const std::string& text) const { return output().find(text) != std::string::npos; }
  json summary() const { return json::parse(read(folder / "run/summary.json")); }
  fs::path newest() const {
    fs::path found;
    for (const auto& entry : fs::directory_iterator(folder / "run/checkpoints")) {
      const std::string name = entry.path().filename();
      if (name.starts_with("step-") && !name.ends_with(".partial"))
        found = std::max(found, entry.path());
    }
    return found;
  }
  json state_of(const fs::path& checkpoint) const {
    return json::parse(read(checkpoint / "manifest.json"))["state"];
  }

  /// Pairs of step and value.
  std::vector<json> losses(const std::string& run) const {
    return figures(run, [](const json& line) { return line.value("loss", json()); });
  }
  std::vector<json> validations(const std::string& run) const {
    return figures(run, [](const json& line) {
      return line.contains("validation") ? line["validation"]["ndcg@10"] : json();
    });
  }
  /// After a stop: goes on, and compares.
  void expect_to_reach_the_same_end(const Layout& layout) {
    EXPECT_EQ(train(layout), 0) << output();
    EXPECT_TRUE(says("resume from")) << output();
    EXPECT_EQ(losses("run"), losses("whole"));
    EXPECT_EQ(validations("run"), validations("whole"));
    EXPECT_EQ(read(folder / "run/checkpoints/best"), read(folder / "whole/checkpoints/best"));
    EXPECT_EQ(finish("compare_checkpoints run/checkpoints/step-00000040 "
                     "whole/checkpoints/step-00000040"),
              0)
        << output();
    EXPECT_EQ(summary()["stopped_by"], "max_steps");
  }
  void expect_stopped_by_signal(int status) {
    EXPECT_EQ(status, kExitStopped) << output();
    EXPECT_TRUE(says("; stops as soon as it can")) << output();
    EXPECT_EQ(summary()["stopped_by"], "signal");
    EXPECT_EQ(summary()["finished"], false);
    EXPECT_EQ(state_of(newest())["step"], summary()["train_steps"]);
  }

  testing::TemporaryFolder folder;

 private:
  std::string marker() const { return "MIRABELLE_TEST=" + folder.path().string(); }
  /// Empty if it has gone.
  static std::string read(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }
  std::vector<json> figures(const std::string& run,
                            const std::function<json(const json&)>& figure) const {
    std::vector<json> found;
    std::ifstream file(folder / (run + "/metrics.jsonl"));
    for (std::string line; std::getline(file, line);) {
      const json entry = json::parse(line, nullptr, false);  // the last may be half written
      if (!entry.is_object() || figure(entry).is_null()) continue;
      found.push_back({entry["step"], figure(entry)});
    }
    return found;
  }

  pid_t shell_ = 0;
};

TEST_F(StopTest, WhileItTrains) {
  start_training(kAlone);
  wait_for_step(7);
  kill(process("mirabelle-train"), SIGTERM);
  expect_stopped_by_signal(wait_for_end());
  const int64_t step = summary()["train_steps"];
  EXPECT_GE(step, 7);
  EXPECT_LT(step, 40);
  EXPECT_EQ(losses("run").size(), step);
  expect_to_reach_the_same_end(kSharded);
}

TEST_F(StopTest, OfOneRankStopsAll) {
  start_training(kGrid);
  wait_for_step(7);
  kill(rank(3), SIGUSR1);
  expect_stopped_by_signal(wait_for_end());
  EXPECT_TRUE(says("rank 3: SIGUSR1 while in step")) << output();
  EXPECT_FALSE(says("rank 2: SIG")) << output();
  expect_to_reach_the_same_end(kAlone);
}

TEST_F(StopTest, OfMpirunReachesAllRanks) {
  start_training(kSharded);
  wait_for_step(7);
  kill(process("mpirun"), SIGUSR1);
  expect_stopped_by_signal(wait_for_end());
  EXPECT_TRUE(says("rank 0: SIGUSR1 while in step")) << output();
  EXPECT_TRUE(says("rank 1: SIGUSR1 while in step")) << output();
  expect_to_reach_the_same_end(kGrid);
}

TEST_F(StopTest, DuringAValidationOwesIt) {
  for (const Layout& layout : {kAlone, kGrid}) {
    fs::remove_all(folder / "run");
    start_training(layout);
    wait_for_step(15);
    kill(layout.ranks == 1 ? process("mirabelle-train") : rank(0), SIGTERM);
    expect_stopped_by_signal(wait_for_end());
    EXPECT_TRUE(says("SIGTERM while in step 15")) << output();
    EXPECT_EQ(state_of(newest())["step"], 15);
    EXPECT_EQ(state_of(newest())["validation_is_owed"], true);
    EXPECT_TRUE(validations("run").empty());
    expect_to_reach_the_same_end(layout);
  }
}

TEST_F(StopTest, DuringACheckpointFinishesIt) {
  start_training(kSharded);
  const fs::path checkpoint = folder / "run/checkpoints/step-00000010";
  ASSERT_TRUE(wait_until([&] {
    return fs::exists(checkpoint) || fs::exists(checkpoint.string() + ".partial");
  })) << output();
  kill(rank(0), SIGTERM);
  expect_stopped_by_signal(wait_for_end());
  EXPECT_TRUE(fs::exists(checkpoint));
  EXPECT_FALSE(fs::exists(checkpoint.string() + ".partial"));
  expect_to_reach_the_same_end(kSharded);
}

TEST_F(StopTest, BeforeTheFirstStep) {
  start_training(kAlone);
  ASSERT_TRUE(wait_until([&] { return catches_sigusr1(process("mirabelle-train")); }));
  kill(process("mirabelle-train"), SIGUSR1);
  EXPECT_EQ(wait_for_end(), kExitStopped) << output();
  EXPECT_EQ(train(kAlone), 0) << output();
  EXPECT_EQ(losses("run"), losses("whole"));
}

TEST_F(StopTest, ASecondSignalEndsARunThatCannotStop) {
  start_training(kSharded);
  ASSERT_TRUE(wait_until([&] { return fs::exists(folder / "run/checkpoints/step-00000010"); }))
      << output();
  kill(rank(0), SIGSTOP);  // for which rank 1 waits
  const pid_t waiting = rank(1);
  kill(waiting, SIGTERM);
  std::this_thread::sleep_for(std::chrono::milliseconds(1500));
  EXPECT_TRUE(is_running());
  kill(waiting, SIGTERM);
  EXPECT_NE(wait_for_end(), 0);
  EXPECT_TRUE(says("rank 1: SIGTERM while in step")) << output();
  EXPECT_TRUE(says("rank 1: ended by SIGTERM while in step")) << output();
  EXPECT_FALSE(fs::exists(folder / "run/summary.json"));
  expect_to_reach_the_same_end(kSharded);
}

TEST_F(StopTest, ATimeLimitStopsItAgainAndAgain) {
  int starts = 1;
  while (train(starts % 2 ? kSharded : kAlone, "--set training.max_wall_seconds=0.5") != 0) {
    ASSERT_EQ(summary()["stopped_by"], "max_wall_seconds") << output();
    ASSERT_LT(++starts, 60);
  }
  EXPECT_EQ(losses("run"), losses("whole"));
  EXPECT_EQ(validations("run"), validations("whole"));
  EXPECT_EQ(finish("compare_checkpoints run/checkpoints/step-00000040 "
                   "whole/checkpoints/step-00000040"),
            0)
      << output();
}

TEST_F(StopTest, IsToldByTheHelp) {
  EXPECT_EQ(finish("mirabelle-train --help"), 0);
  EXPECT_TRUE(says("75 if it was stopped")) << output();
}

}  // namespace
}  // namespace mirabelle
