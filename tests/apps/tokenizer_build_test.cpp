#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdlib>

#include "mirabelle/core/device.h"
#include "mirabelle/core/error.h"
#include "mirabelle/core/files.h"
#include "mirabelle/core/hdf5_file.h"
#include "mirabelle/tokenizer/tokenizer_file.h"
#include "support/shared_gpus.h"
#include "support/tiny_corpus.h"

namespace mirabelle {
namespace {

class TokenizerBuildTest : public ::testing::Test {
 protected:
  TokenizerBuildTest() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = std::filesystem::path(::testing::TempDir()) / info->name();
    std::filesystem::remove_all(folder_);
    write_tiny_corpus(folder_ / "corpus", 60, 300, 1);
  }
  ~TokenizerBuildTest() override { std::filesystem::remove_all(folder_); }

  /// Exit status; output and errors together are in output_.
  int run(const std::string& arguments, const std::string& launcher = "") {
    const std::string log = (folder_ / "log").string();
    const std::string command = launcher + " " MIRABELLE_BIN "/mirabelle-tokenizer-build " +
                                arguments + " > " + log + " 2>&1";
    const int status = std::system(command.c_str());
    output_ = read_text_file(log);
    return WEXITSTATUS(status);
  }
  std::string set_corpus() const {
    return "--set data.corpus=" + (folder_ / "corpus").string() +
           " --set 'tokenizer.levels=[8, 4]'";
  }
  std::string set_file(const std::string& name) const {
    return " --set tokenizer.file=" + (folder_ / name).string();
  }
  bool said(const std::string& part) const { return output_.find(part) != std::string::npos; }

  std::filesystem::path folder_;
  std::string output_;
};

TEST_F(TokenizerBuildTest, WritesFileTableAndJson) {
  const std::string json = (folder_ / "report.json").string();
  ASSERT_EQ(run(set_corpus() + set_file("t.h5") + " --json " + json), 0) << output_;
  EXPECT_TRUE(said("300 items")) << output_;
  EXPECT_TRUE(said("relative error")) << output_;
  const TokenizerFile tokenizer = read_tokenizer_file(folder_ / "t.h5");
  EXPECT_EQ(tokenizer.ids.num_items(), 300);
  EXPECT_NE(tokenizer.config.find("levels: [8, 4]"), std::string::npos);
  const auto report = nlohmann::json::parse(read_text_file(json));
  EXPECT_EQ(report["num_items"], 300);
  EXPECT_EQ(report["dataset"], "tiny");
  EXPECT_EQ(report["levels"].size(), 2u);
  for (const auto& level : report["levels"]) {
    EXPECT_GE(level["iterations"], 2);
    EXPECT_GT(level["items_per_second"], 0);
  }
  EXPECT_GT(report["seconds"], 0);
}

TEST_F(TokenizerBuildTest, TrainsAnRqVae) {
  const std::string json = (folder_ / "report.json").string();
  const std::string small =
      " --set tokenizer.kind=rq_vae --set rq_vae.steps=40 --set rq_vae.batch_items=64 --set "
      "'rq_vae.hidden_sizes=[8]' --set rq_vae.source_size=6 --set rq_vae.codebook_dim=4 --set "
      "rq_vae.contrastive_weight=0.1";
  ASSERT_EQ(run(set_corpus() + set_file("t.h5") + small + " --json " + json), 0) << output_;
  EXPECT_TRUE(said("reconstruction")) << output_;
  const auto report = nlohmann::json::parse(read_text_file(json));
  EXPECT_EQ(report["kind"], "rq_vae");
  EXPECT_EQ(report["rq_vae"]["steps"], 40);
  EXPECT_GT(report["rq_vae"]["items_per_second"], 0);
  EXPECT_GT(report["rq_vae"]["encoded_items_per_second"], 0);
  EXPECT_TRUE(read_tokenizer_file(folder_ / "t.h5").quantizer.rq_vae);
  EXPECT_EQ(run(set_corpus() + set_file("t.h5") + small + " --set rq_vae.parts=3"), 2);
  EXPECT_TRUE(said("rq_vae.parts must be a power of two, not 3")) << output_;
}

TEST_F(TokenizerBuildTest, MakesTheSameFileUnderMpirun) {
  ASSERT_EQ(run(set_corpus() + set_file("one.h5")), 0) << output_;
  ASSERT_EQ(run(set_corpus() + set_file("three.h5") + testing::shared_gpus(3),
                "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1 "
                "mpirun -n 3 --oversubscribe --bind-to none --mca mpi_yield_when_idle 1"),
            0)
      << output_;
  const Hdf5File one = Hdf5File::open(folder_ / "one.h5");
  const Hdf5File three = Hdf5File::open(folder_ / "three.h5");
  EXPECT_EQ(one.read<int32_t>("table/codes"), three.read<int32_t>("table/codes"));
  EXPECT_EQ(one.read<float>("codebooks/level_0"), three.read<float>("codebooks/level_0"));
  EXPECT_EQ(one.read<float>("codebooks/level_1"), three.read<float>("codebooks/level_1"));
  EXPECT_EQ(one.read_text("report"), three.read_text("report"));
}

TEST_F(TokenizerBuildTest, AssignSaysHowManyItemsAreNew) {
  ASSERT_EQ(run(set_corpus() + set_file("t.h5")), 0) << output_;
  const auto before = read_tokenizer_file(folder_ / "t.h5");
  ASSERT_EQ(run(set_corpus() + set_file("t.h5") + " --assign"), 0) << output_;
  EXPECT_TRUE(said("0 new items got semantic IDs; the 300 old ones keep theirs.")) << output_;
  const auto after = read_tokenizer_file(folder_ / "t.h5");
  for (int64_t item = 0; item < 300; ++item) {
    EXPECT_TRUE(std::ranges::equal(before.ids.codes(item), after.ids.codes(item)));
  }
}

TEST_F(TokenizerBuildTest, ComparesTwoTokenizersOfTheSameItems) {
  ASSERT_EQ(run(set_corpus() + set_file("a.h5")), 0) << output_;
  ASSERT_EQ(run(set_corpus() + set_file("b.h5") + " --set tokenizer.seed=5"), 0) << output_;
  const auto path = [&](const std::string& name) { return (folder_ / name).string(); };
  const std::string json = path("agreement.json");
  ASSERT_EQ(run("--compare " + path("a.h5") + " " + path("b.h5") + " --json " + json), 0)
      << output_;
  EXPECT_TRUE(said("adjusted Rand index")) << output_;
  const auto agreement = nlohmann::json::parse(read_text_file(json)).at("agreement");
  ASSERT_EQ(agreement.size(), 2u);
  EXPECT_GT(agreement[0], 0.02);
  EXPECT_LT(agreement[0], 0.98);
  ASSERT_EQ(run("--compare " + path("a.h5") + " " + path("a.h5") + " --json " + json), 0);
  EXPECT_EQ(nlohmann::json::parse(read_text_file(json)).at("agreement"),
            nlohmann::json({1.0, 1.0}));

  std::filesystem::remove_all(folder_ / "corpus");
  write_tiny_corpus(folder_ / "corpus", 60, 301, 1);
  ASSERT_EQ(run(set_corpus() + set_file("b.h5")), 0) << output_;
  EXPECT_EQ(run("--compare " + path("a.h5") + " " + path("b.h5")), 3);
  EXPECT_TRUE(said("are tokenizers of different items")) << output_;
  EXPECT_EQ(std::count(output_.begin(), output_.end(), '\n'), 1) << output_;
}

TEST_F(TokenizerBuildTest, SharesIdsIfTold) {
  ASSERT_EQ(run(set_corpus() + set_file("t.h5") + " --set tokenizer.collisions=shared"), 0)
      << output_;
  EXPECT_TRUE(said("items share ")) << output_;
  EXPECT_EQ(read_tokenizer_file(folder_ / "t.h5").ids.num_levels(), 2);
  ASSERT_EQ(run(set_corpus() + set_file("t.h5") + " --assign"), 0) << output_;
}

TEST_F(TokenizerBuildTest, EndsWithStatusTwoForBadConfiguration) {
  EXPECT_EQ(run(set_corpus() + set_file("t.h5") + " --set tokenizer.kind=guess"), 2);
  EXPECT_TRUE(said("tokenizer.kind must be")) << output_;
  EXPECT_EQ(run(set_file("t.h5")), 2);
  EXPECT_TRUE(said("data.corpus must name")) << output_;
  EXPECT_FALSE(std::filesystem::exists(folder_ / "t.h5"));
}

TEST_F(TokenizerBuildTest, SaysTheBackendAndRefusesOneThatIsNotThere) {
  EXPECT_EQ(run(set_corpus() + set_file("t.h5") + " --set backend=cpu"), 0) << output_;
  EXPECT_TRUE(said("backend cpu (")) << output_;
  if (num_cuda_devices() > 0) return;
  EXPECT_EQ(run(set_corpus() + set_file("u.h5") + " --set backend=cuda"), 2) << output_;
  EXPECT_TRUE(said("backend cuda is wanted, but this machine has no GPU")) << output_;
  EXPECT_FALSE(std::filesystem::exists(folder_ / "u.h5"));
}

TEST_F(TokenizerBuildTest, EndsWithStatusThreeForBadData) {
  EXPECT_EQ(run("--set data.corpus=" + folder_.string() + set_file("t.h5")), 3) << output_;
  EXPECT_EQ(run(set_corpus() + set_file("missing.h5") + " --assign"), 3);
  EXPECT_TRUE(said("missing.h5: no such file")) << output_;
  EXPECT_EQ(run(set_corpus() + " --set tokenizer.file=/proc/t.h5"), 3);
  EXPECT_TRUE(said("/proc/t.h5: cannot write")) << output_;
  EXPECT_FALSE(said("level 1/")) << output_;  // before any work
}

}  // namespace
}  // namespace mirabelle
