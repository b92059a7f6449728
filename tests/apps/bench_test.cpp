#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <set>

#include "mirabelle/core/files.h"
#include "support/temporary_folder.h"

namespace mirabelle {
namespace {

class BenchProgramTest : public ::testing::Test {
 protected:
  int bench(const std::string& arguments) const {
    const std::string command = "cd " + folder.path().string() +
                                " && " MIRABELLE_BIN "/mirabelle-bench --set backend=cpu " +
                                arguments + " > out.txt 2>&1";
    return WEXITSTATUS(std::system(command.c_str()));
  }
  std::string output() const { return read_text_file(folder / "out.txt"); }

  testing::TemporaryFolder folder;
};

TEST_F(BenchProgramTest, MeasuresEveryKernelBesideItsRoofline) {
  ASSERT_EQ(bench("kernels --tokens 128 --sequence 32 --hidden 64 --heads 2 --ffn 96 --vocab 100 "
                  "--json b.json"),
            0)
      << output();
  const nlohmann::json result = nlohmann::json::parse(read_text_file(folder / "b.json"));
  const nlohmann::json limits = result["limits"];
  EXPECT_GT(limits["copy_bytes_per_second"].get<double>(), 1e8);
  EXPECT_GT(limits["product_flops_per_second"].get<double>(), 1e8);
  std::set<std::string> names;
  for (const auto& kernel : result["kernels"]) {
    names.insert(kernel["name"].get<std::string>());
    const double bytes = kernel["bytes"], flops = kernel["flops"], seconds = kernel["seconds"];
    EXPECT_EQ((bytes > 0) + (flops > 0), 1) << kernel;
    const double limit = bytes > 0 ? limits["copy_bytes_per_second"].get<double>()
                                   : limits["product_flops_per_second"].get<double>();
    EXPECT_NEAR(kernel["fraction_of_roofline"].get<double>(), (bytes + flops) / seconds / limit,
                1e-9)
        << kernel;
  }
  EXPECT_EQ(names.size(), 29u);
  // 2 products of 32 x 32 scores, half masked, 4 sequences, 64 features
  for (const auto& kernel : result["kernels"]) {
    const std::string name = kernel["name"];
    const double flops = kernel["flops"], bytes = kernel["bytes"];
    if (name == "attention forward") {
      EXPECT_EQ(flops, 2.0 * 128 * 32 * 64);
    } else if (name == "qkv product forward") {
      EXPECT_EQ(flops, 2.0 * 128 * 64 * 192);
    } else if (name == "SwiGLU forward") {
      EXPECT_EQ(bytes, 3.0 * 128 * 96 * 4);
    }
  }
  EXPECT_NE(output().find("measured limits"), std::string::npos);
}

TEST_F(BenchProgramTest, CountsTheBytesOfBfloat16) {
  ASSERT_EQ(bench("kernels --dtype bfloat16 --tokens 64 --sequence 32 --hidden 64 --heads 2 "
                  "--ffn 96 --vocab 100 --json b.json"),
            0)
      << output();
  const nlohmann::json result = nlohmann::json::parse(read_text_file(folder / "b.json"));
  EXPECT_EQ(result["kernels"].size(), 29u);
  for (const auto& kernel : result["kernels"]) {
    if (kernel["name"] == "SwiGLU forward") {
      EXPECT_EQ(kernel["bytes"].get<double>(), 3.0 * 64 * 96 * 2);
    }
  }
}

TEST_F(BenchProgramTest, TimesTrainingSteps) {
  for (const std::string lengths : {"", "--skewed "}) {
    ASSERT_EQ(bench("training --model tiny --micro-batch-tokens 256 --micro-batches 2 "
                    "--sequence 64 --json b.json " +
                    lengths),
              0)
        << output();
    const nlohmann::json result = nlohmann::json::parse(read_text_file(folder / "b.json"));
    EXPECT_EQ(result["benchmark"], "training");
    const nlohmann::json model = result["models"][0];
    const double parameters = 4 * (4 * 128 * 128 + 3 * 128 * 384) + 1024 * 128 + 9 * 128;
    EXPECT_EQ(model["parameters"].get<double>(), parameters);
    EXPECT_EQ(model["tokens_per_step"], 512);
    EXPECT_NEAR(model["tokens_per_second"].get<double>(),
                512 / model["seconds_per_step"].get<double>(), 1e-6);
    // every weight but the norms', and causal attention of sequences of at most 64 tokens
    const double products = 6 * 512 * (parameters - 9 * 128), flops = model["flops_per_step"];
    const double attention = 6.0 * 4 * 128 * 64 * 64 * 8;
    if (lengths.empty()) {
      EXPECT_DOUBLE_EQ(flops, products + attention);
    } else {
      EXPECT_GT(flops, products);
      EXPECT_LT(flops, products + 0.7 * attention);
    }
  }
}

TEST_F(BenchProgramTest, TimesBeamSearch) {
  ASSERT_EQ(
      bench("beam-search --users 2 --beams 5 --history 3 --levels 3 --level-size 8 --items 50 "
            "--hidden 32 --layers 2 --heads 2 --kv-heads 1 --ffn 64 --json b.json"),
      0)
      << output();
  const nlohmann::json result = nlohmann::json::parse(read_text_file(folder / "b.json"));
  EXPECT_GT(result["seconds_per_batch"].get<double>(), 0);
  // 2 users of 10 tokens, then 2 x 10 beams; per token twice the weights
  const double weights = 2 * ((2 + 2) * 16 * 32 + 32 * 32 + 3 * 32 * 64), vocab = 1 + 3 * 8;
  const double products = 2 * weights * (20 + 20) + 2 * vocab * 32 * (2 + 20);
  EXPECT_DOUBLE_EQ(result["flops_per_batch"].get<double>(),
                   products + 2.0 * 64 * 2 * 100 + 4.0 * 64 * 20 * 10);
}

TEST_F(BenchProgramTest, RefusesShapesThatDoNotFit) {
  EXPECT_EQ(bench(""), 2);
  EXPECT_NE(output().find("wanted kernels, training or beam-search"), std::string::npos);
  EXPECT_EQ(bench("training --model 3B"), 2);
  EXPECT_NE(output().find("no model '3B'; there are tiny, 125M, 0.5B, 1.5B"), std::string::npos);
  EXPECT_EQ(bench("training --sequence 2000 --micro-batch-tokens 1000"), 2);
  EXPECT_EQ(bench("beam-search --levels 2 --level-size 10 --items 60"), 2);
  EXPECT_NE(output().find("--items 60 is more than half"), std::string::npos);
  EXPECT_EQ(bench("kernels --tokens 100 --sequence 32"), 2);
  EXPECT_NE(output().find("--tokens 100 must be a multiple of --sequence, 32"), std::string::npos);
  EXPECT_EQ(bench("kernels --hidden 100 --heads 3"), 2);
  EXPECT_EQ(bench("kernels --dtype int8"), 2);
  EXPECT_NE(output().find("not 'int8'"), std::string::npos);
}

}  // namespace
}  // namespace mirabelle
