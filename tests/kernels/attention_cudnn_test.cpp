#include <dlfcn.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <sstream>

#include "cuda/attention_cudnn_graph.h"
#include "mirabelle/core/error.h"
#include "mirabelle/core/files.h"

namespace mirabelle::testing {
namespace {

using backend::AttentionPass;
using backend::AttentionShape;

/// What cuDNN offers for an H100, which need not be there.
class AttentionGraphTest : public ::testing::Test {
 protected:
  /// cuDNN loads the driver all the same; where there is none, the toolkit's stub has its name.
  static void SetUpTestSuite() {
    if (!dlopen("libcuda.so.1", RTLD_NOW)) {
      ASSERT_TRUE(dlopen(MIRABELLE_CUDA_STUB, RTLD_NOW | RTLD_GLOBAL)) << dlerror();
    }
  }

  /// Bytes of workspace of each engine that is offered.
  std::vector<int64_t> workspaces(AttentionPass pass, const AttentionShape& shape) const {
    std::vector<int64_t> bytes;
    for (const auto& engine : backend::attention_graph(pass, shape).engines(h100_)) {
      bytes.push_back(engine.get_int64(CUDNN_ATTR_ENGINECFG_WORKSPACE_SIZE));
    }
    return bytes;
  }

  const backend::CudnnDescriptor h100_ = backend::cudnn_device_properties(
      read_text_file(std::filesystem::path(MIRABELLE_TESTS) / "kernels" / "h100.json"));
};

std::string describe(const AttentionShape& s) {
  std::ostringstream text;
  text << s.num_sequences << " sequences of " << s.max_sequence_tokens << ", " << s.num_heads
       << " heads on " << s.num_kv_heads << " of " << s.head_dim;
  return text.str();
}

TEST_F(AttentionGraphTest, EnginesTakeEveryShapeThatWeGiveThem) {
  for (const int64_t head_dim : {32, 48, 64, 80, 96, 112, 128}) {
    for (const int64_t num_kv_heads : {12, 4, 1}) {
      for (const auto& [num_sequences, tokens] :
           {std::pair<int64_t, int64_t>{1, 128}, {16, 1024}, {512, 128}}) {
        const AttentionShape shape = {num_sequences, tokens, 12, num_kv_heads, head_dim};
        SCOPED_TRACE(describe(shape));
        EXPECT_FALSE(workspaces(AttentionPass::kForward, shape).empty());
        EXPECT_FALSE(workspaces(AttentionPass::kBackward, shape).empty());
      }
    }
  }
}

TEST_F(AttentionGraphTest, EnginesTakeSequencesOfEveryLengthThatWeRoundTo) {
  for (const int64_t tokens : {256, 384, 640, 2048, 4096, 11008}) {
    for (const int64_t num_sequences : {1, 2, 4, 64}) {
      const AttentionShape shape = {num_sequences, tokens, 16, 16, 64};
      SCOPED_TRACE(describe(shape));
      EXPECT_FALSE(workspaces(AttentionPass::kForward, shape).empty());
      EXPECT_FALSE(workspaces(AttentionPass::kBackward, shape).empty());
    }
  }
}

TEST_F(AttentionGraphTest, WorkspaceIsSmallButForSharedKeyHeads) {
  for (const AttentionShape& shape :
       {AttentionShape{16, 1024, 12, 12, 64}, {16, 1024, 12, 4, 64}, {64, 512, 16, 2, 128}}) {
    SCOPED_TRACE(describe(shape));
    const int64_t small = 1024 * (shape.num_sequences + 64);
    const auto forward = workspaces(AttentionPass::kForward, shape);
    const auto backward = workspaces(AttentionPass::kBackward, shape);
    ASSERT_FALSE(forward.empty() || backward.empty());
    EXPECT_LE(forward.front(), small);
    // gradients of keys and values by query head, in bfloat16
    const int64_t shared = shape.num_heads == shape.num_kv_heads
                               ? 0
                               : 2 * 2 * shape.num_sequences * shape.max_sequence_tokens *
                                     shape.num_heads * shape.head_dim;
    EXPECT_GE(backward.front(), shared);
    EXPECT_LE(backward.front(), shared + small);
  }
}

TEST_F(AttentionGraphTest, RefusalsSayWhy) {
  const AttentionShape odd = {16, 1024, 12, 12, 60};
  for (const auto pass : {AttentionPass::kForward, AttentionPass::kBackward}) {
    try {
      EXPECT_TRUE(workspaces(pass, odd).empty()) << "a head of 60";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("CUDNN_STATUS_"), std::string::npos) << error.what();
    }
  }
  EXPECT_THROW(backend::cudnn_device_properties("{}"), Error);
}

}  // namespace
}  // namespace mirabelle::testing
