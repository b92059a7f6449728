// Runs fault_program under mpirun: whatever happens to one rank, the job ends in time, and says
// where.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <chrono>
#include <cstdlib>
#include <string>

#include "mirabelle/core/files.h"
#include "support/temporary_folder.h"

namespace mirabelle {
namespace {

struct Outcome {
  int exit_status;
  std::string output;
  double seconds;

  bool says(const std::string& line) const { return output.find(line) != std::string::npos; }
};

class FaultTest : public ::testing::Test {
 protected:
  Outcome run(const std::string& arguments) const {
    const std::string output = folder_ / "output";
    const auto start = std::chrono::steady_clock::now();
    const int status = std::system(
        ("OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 timeout 100 " MPIEXEC
         " -n 4 --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 " FAULT_PROGRAM " " +
         arguments + " >" + output + " 2>&1")
            .c_str());
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    return {WEXITSTATUS(status), read_text_file(output), seconds.count()};
  }

  /// Where all but rank 2, which broke in step 3, were when mpirun ended them.
  static void expect_last_words_of_survivors(const Outcome& outcome) {
    const std::string interrupted = ": ended by SIGTERM while in step 3, ";
    for (const std::string& line :
         {"rank 0" + interrupted + "all_reduce of the data-parallel group\n",
          "rank 1" + interrupted + "all_reduce of the data-parallel group\n",
          "rank 3" + interrupted + "forward, all_reduce of the tensor-parallel group\n"}) {
      EXPECT_TRUE(outcome.says(line)) << line << outcome.output;
    }
  }

  testing::TemporaryFolder folder_;
};

TEST_F(FaultTest, NothingIsSaidWhenAllGoesWell) {
  const Outcome outcome = run("nothing 0 60");
  EXPECT_EQ(outcome.exit_status, 0);
  EXPECT_EQ(outcome.output, "");
}

TEST_F(FaultTest, ARankThatThrowsEndsTheJob) {
  const Outcome outcome = run("throw 2 60");
  EXPECT_EQ(outcome.exit_status, 1);
  EXPECT_LT(outcome.seconds, 10);
  EXPECT_TRUE(outcome.says("plum: rank 2: frost\n")) << outcome.output;
  expect_last_words_of_survivors(outcome);
}

TEST_F(FaultTest, ARankThatIsKilledEndsTheJob) {
  const Outcome outcome = run("kill 2 60");
  EXPECT_NE(outcome.exit_status, 0);
  EXPECT_LT(outcome.seconds, 10);
  EXPECT_TRUE(outcome.says("process rank 2")) << outcome.output;  // mpirun's words
  expect_last_words_of_survivors(outcome);
}

TEST_F(FaultTest, ARankThatStallsEndsTheJobAfterTheTimeout) {
  const Outcome outcome = run("stall 1 4");
  EXPECT_NE(outcome.exit_status, 0);
  EXPECT_GE(outcome.seconds, 4);
  EXPECT_LT(outcome.seconds, 14);
  const std::string in_vain = " group at step 3; a rank of it is stalled or dead\n";
  EXPECT_TRUE(outcome.says("rank 0: waited 4 s in all_reduce of the tensor-parallel" + in_vain) ||
              outcome.says("rank 2: waited 4 s in all_reduce of the data-parallel" + in_vain) ||
              outcome.says("rank 3: waited 4 s in all_reduce of the data-parallel" + in_vain))
      << outcome.output;
  EXPECT_TRUE(outcome.says("rank 1: ended by SIGTERM while in step 3, forward\n"))
      << outcome.output;
}

TEST_F(FaultTest, ARankThatStallsAtTheEndEndsTheJobToo) {
  const Outcome outcome = run("stall-at-end 1 4");
  EXPECT_NE(outcome.exit_status, 0);
  EXPECT_LT(outcome.seconds, 14);
  EXPECT_TRUE(outcome.says(": waited 4 s in MPI_")) << outcome.output;
}

}  // namespace
}  // namespace mirabelle
