// What is compared, and jobs of preflight_program that must be refused, or not.
#include "mirabelle/config/preflight.h"

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <fstream>

#include "mirabelle/config/rank_places.h"
#include "mirabelle/core/files.h"
#include "support/temporary_folder.h"

namespace mirabelle {
namespace {

namespace fs = std::filesystem;

const std::vector<std::string> kHosts = {"a", "b", "c"};

TEST(PreflightFactsTest, NameTheProgramItsKernelsAndMpi) {
  const auto facts = program_facts();
  EXPECT_EQ(facts.at("program"), sha256_of_file("/proc/self/exe").substr(0, 12));
  EXPECT_EQ(facts.at("MPI").find("Open MPI v"), 0u) << facts.at("MPI");
  int libraries = 0;
  for (const auto& [name, value] : facts) libraries += name.starts_with("libmirabelle_cpu_kernels");
  EXPECT_EQ(libraries, 1);
}

TEST(PreflightFactsTest, OfRanksThatAgreeThereIsNoDifference) {
  EXPECT_FALSE(difference({}, {}).has_value());
  EXPECT_FALSE(difference({{{"MPI", "4"}}, {{"MPI", "4"}}, {{"MPI", "4"}}}, kHosts).has_value());
  // machines of two kinds have kernels of two kinds, and one may have no GPU
  EXPECT_FALSE(difference({{{"kernels for AVX2", "x"}, {"CUDA driver", "13.0"}},
                           {{"kernels for AVX-512", "y"}},
                           {{"kernels for AVX2", "x"}}},
                          kHosts)
                   .has_value());
}

TEST(PreflightFactsTest, TheFirstRankThatDiffersIsNamed) {
  EXPECT_EQ(difference({{{"MPI", "4"}}, {{"MPI", "4"}}, {{"MPI", "5"}}}, kHosts),
            "rank 2 on c has another MPI (5) than rank 0 on a (4); install the same MPI on every "
            "host");
  EXPECT_EQ(difference({{{"x", "1"}}, {{"y", "2"}}, {{"x", "1"}, {"y", "3"}}}, kHosts),
            "rank 2 on c has another y (3) than rank 1 on b (2); install the same build on every "
            "host");
}

struct Outcome {
  int exit_status;
  std::string output;
  bool says(const std::string& text) const { return output.find(text) != std::string::npos; }
  /// Lines that the program ended with.
  int num_refusals() const {
    int count = 0;
    for (size_t at = 0; (at = output.find("plum:", at)) != std::string::npos; ++at) ++count;
    return count;
  }
};

class PreflightTest : public ::testing::Test {
 protected:
  Outcome mpirun(const std::string& arguments) const {
    const std::string output = folder_ / "output";
    const int status =
        std::system(("OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1 "
                     "LD_LIBRARY_PATH=" PREFLIGHT_LIBRARIES " timeout 60 " MPIEXEC
                     " --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 " +
                     arguments + " > " + output + " 2>&1")
                        .c_str());
    return {WEXITSTATUS(status), read_text_file(output)};
  }
  Outcome run(int ranks, const std::string& arguments) const {
    return mpirun("-n " + std::to_string(ranks) + " " PREFLIGHT_PROGRAM " " + arguments);
  }

  testing::TemporaryFolder folder_;
};

TEST_F(PreflightTest, FourRanksAreShownWithTheirGroups) {
  const Outcome outcome = run(4, "groups 2");
  EXPECT_EQ(outcome.exit_status, 0) << outcome.output;
  EXPECT_TRUE(outcome.says("preflight: Open MPI v")) << outcome.output;
  EXPECT_TRUE(outcome.says("rank  host")) << outcome.output;
  for (const char* rank : {"0", "1", "2", "3"}) {
    EXPECT_TRUE(outcome.says("   " + std::string(rank) + "  " + host_name())) << outcome.output;
  }
  EXPECT_TRUE(outcome.says("all-reduce of 4 MiB: world (4) ")) << outcome.output;
  EXPECT_TRUE(outcome.says(", tensor-parallel (2) ")) << outcome.output;
  EXPECT_TRUE(outcome.says(", data-parallel (2) ")) << outcome.output;
  EXPECT_TRUE(outcome.says("22\n")) << outcome.output;
}

TEST_F(PreflightTest, OneRankSaysNothing) {
  const Outcome outcome = run(1, "groups 1");
  EXPECT_EQ(outcome.exit_status, 0);
  EXPECT_EQ(outcome.output, "11\n");
}

TEST_F(PreflightTest, AnotherProgramOnOneRankIsRefused) {
  const fs::path other = folder_ / "other";
  fs::copy_file(PREFLIGHT_PROGRAM, other);
  ASSERT_EQ(mpirun("-n 2 " PREFLIGHT_PROGRAM " groups 1 : -n 1 " + other.string() + " groups 1")
                .exit_status,
            0);
  std::ofstream(other, std::ios::app) << "a newer build";
  const Outcome outcome =
      mpirun("-n 2 " PREFLIGHT_PROGRAM " groups 1 : -n 1 " + other.string() + " groups 1");
  EXPECT_EQ(outcome.exit_status, 2);
  EXPECT_EQ(outcome.num_refusals(), 1) << outcome.output;
  const std::string host = host_name();
  EXPECT_TRUE(outcome.says("plum: rank 0: rank 2 on " + host + " has another program (" +
                           sha256_of_file(other).substr(0, 12) + ") than rank 0 on " + host + " (" +
                           sha256_of_file(PREFLIGHT_PROGRAM).substr(0, 12) +
                           "); install the same build on every host"))
      << outcome.output;
  EXPECT_FALSE(outcome.says("all-reduce")) << outcome.output;
}

TEST_F(PreflightTest, CheckpointsThatFitLeaveNothingBehind) {
  const fs::path output = folder_ / "new/run";
  for (const int ranks : {1, 3}) {
    const Outcome outcome = run(ranks, "room " + output.string() + " 3 1000");
    EXPECT_EQ(outcome.exit_status, 0);
    EXPECT_EQ(outcome.output, "");
    EXPECT_TRUE(fs::is_empty(output));
  }
}

TEST_F(PreflightTest, CheckpointsThatDoNotFitAreRefused) {
  for (const int ranks : {1, 2}) {
    const Outcome outcome =
        run(ranks, "room " + folder_.path().string() + " 3 1000000000000000");  // a petabyte each
    EXPECT_EQ(outcome.exit_status, 2);
    EXPECT_EQ(outcome.num_refusals(), 1) << outcome.output;
    EXPECT_TRUE(outcome.says("rank 0 on " + host_name() + " has ")) << outcome.output;
    EXPECT_TRUE(outcome.says(" free for training.output, " + folder_.path().string() +
                             ", where 3 more checkpoints of 909.5 TiB must fit: "))
        << outcome.output;
  }
}

TEST_F(PreflightTest, AFolderThatOneRankCannotUseIsRefused) {
  const fs::path file = folder_.write("file", "");
  const fs::path good = folder_ / "good";
  const Outcome outcome =
      mpirun("-n 2 " PREFLIGHT_PROGRAM " room " + good.string() +
             " 1 1 : -n 1 " PREFLIGHT_PROGRAM " room " + file.string() + "/x 1 1");
  EXPECT_EQ(outcome.exit_status, 2);
  EXPECT_EQ(outcome.num_refusals(), 1) << outcome.output;
  EXPECT_TRUE(outcome.says("plum: rank 0: rank 2 on " + host_name() +
                           " cannot use training.output: " + file.string() + "/x: cannot create:"))
      << outcome.output;
}

TEST_F(PreflightTest, AFolderThatTheHostsDoNotShareIsRefused) {
  // As if it were on each host's own disk. An old file of rank 0's does not count.
  const fs::path here = folder_ / "here", there = folder_ / "there";
  folder_.write("there/.preflight-0.partial", "1795400000\n");
  const Outcome outcome =
      mpirun("-n 1 " PREFLIGHT_PROGRAM " room " + here.string() +
             " 1 1 : -n 1 " PREFLIGHT_PROGRAM " room " + there.string() + " 1 1");
  EXPECT_EQ(outcome.exit_status, 2);
  EXPECT_TRUE(outcome.says("plum: rank 0: rank 1 on " + host_name() +
                           " does not see what rank 0 writes to training.output, " +
                           there.string() + "; it must be on a file system that all hosts share"))
      << outcome.output;
}

}  // namespace
}  // namespace mirabelle
