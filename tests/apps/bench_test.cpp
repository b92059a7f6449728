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
  ASSERT_EQ(bench("--tokens 128 --sequence 32 --hidden 64 --heads 2 --ffn 96 --vocab 100 "
                  "--json b.json"),
            0)
      << output();
  const nlohmann::json result = nlohmann::json::parse(read_text_file(folder / "b.json"));
  EXPECT_GT(result["copy_bytes_per_second"].get<double>(), 1e8);
  EXPECT_GT(result["product_flops_per_second"].get<double>(), 1e8);
  std::set<std::string> names;
  for (const auto& kernel : result["kernels"]) {
    names.insert(kernel["name"].get<std::string>());
    const double bytes = kernel["bytes"], flops = kernel["flops"], seconds = kernel["seconds"];
    EXPECT_EQ((bytes > 0) + (flops > 0), 1) << kernel;
    const double limit = bytes > 0 ? result["copy_bytes_per_second"].get<double>()
                                   : result["product_flops_per_second"].get<double>();
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

TEST_F(BenchProgramTest, RefusesShapesThatDoNotFit) {
  EXPECT_EQ(bench("--tokens 100 --sequence 32"), 2);
  EXPECT_NE(output().find("--tokens 100 must be a multiple of --sequence, 32"), std::string::npos);
  EXPECT_EQ(bench("--hidden 100 --heads 3"), 2);
  EXPECT_EQ(bench("--dtype int8"), 2);
  EXPECT_NE(output().find("not 'int8'"), std::string::npos);
}

}  // namespace
}  // namespace mirabelle
