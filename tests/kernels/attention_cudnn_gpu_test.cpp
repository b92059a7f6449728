#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>

#include "cuda/libraries.h"
#include "mirabelle/core/cuda_check.h"
#include "mirabelle/core/cuda_graph.h"
#include "mirabelle/kernels/attention.h"
#include "mirabelle/kernels/reduce.h"
#include "support/backends.h"

namespace mirabelle::testing {
namespace {

/// That cuDNN is what runs; attention_test.cpp compares all kernels with the formulas.
class AttentionCudnnGpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    int major = 0;
    if (num_cuda_devices() > 0) {
      CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    }
    if (major != 9) GTEST_SKIP() << "no Hopper GPU";
  }

  struct Results {
    std::vector<double> out, log_sum, grad_qkv;
  };

  /// Sequences of up to 256 tokens, with 6 query heads on 2 key heads of 64.
  class Attention {
   public:
    explicit Attention(const std::vector<int32_t>& offsets)
        : qkv_shape_{offsets.back(), kHeads + 2 * kKvHeads, kHeadDim},
          out_shape_{offsets.back(), kHeads * kHeadDim},
          offsets_(make_int_tensor(kBackend, offsets)) {}

    void enqueue(const Stream& stream) const {
      const double scale = 1 / std::sqrt(static_cast<double>(kHeadDim));
      attention_forward(out_.view(), log_sum_.view(), qkv_.view(), offsets_.view(), 256, scale,
                        stream);
      attention_backward(grad_qkv_.view(), grad_out_.view(), out_.view(), log_sum_.view(),
                         qkv_.view(), offsets_.view(), 256, scale, stream);
    }
    Results results() const {
      return {to_doubles(out_.view()), to_doubles(log_sum_.view()), to_doubles(grad_qkv_.view())};
    }
    void forget_results(const Stream& stream) const {
      for (const Buffer* buffer : {&out_, &log_sum_, &grad_qkv_}) fill_zero(buffer->view(), stream);
    }

   private:
    static constexpr int64_t kHeads = 6, kKvHeads = 2, kHeadDim = 64;
    static constexpr Backend kBackend = {Device::kCuda, DType::kBFloat16, 1e-2};
    static Buffer random(const Shape& shape, uint64_t seed) {
      return make_tensor(kBackend, shape, random_values(shape.num_elements(), seed));
    }
    Shape qkv_shape_, out_shape_;
    Buffer offsets_, qkv_ = random(qkv_shape_, 1), grad_out_ = random(out_shape_, 2);
    Buffer out_ = empty_tensor(kBackend, out_shape_);
    Buffer grad_qkv_ = empty_tensor(kBackend, qkv_shape_);
    Buffer log_sum_ = empty_wide_tensor(kBackend, {qkv_shape_[0], kHeads});
  };
  static Results run(const Stream& stream, const std::vector<int32_t>& offsets) {
    const Attention attention(offsets);
    attention.enqueue(stream);
    return attention.results();
  }
  static void expect_agreement(const Results& actual, const Results& expected) {
    expect_near(actual.out, expected.out, 1e-2, "out");
    expect_near(actual.log_sum, expected.log_sum, 5e-5, "log_sum");
    expect_near(actual.grad_qkv, expected.grad_qkv, 5e-2, "grad_qkv");
  }

  static int64_t num_plans(const Stream& stream) {
    int64_t count = 0;
    for (const auto& [key, plan] : backend::libraries_of(stream).attention_plans()) {
      count += plan != nullptr;
    }
    return count;
  }

  const std::vector<int32_t> full_ = {0, 200, 200, 456, 587, 837, 1027};
};

TEST_F(AttentionCudnnGpuTest, RunsUnlessResultsMustRepeatOrTheBatchIsMostlyPadding) {
  const Stream fast(Device::kCuda, false), reproducible(Device::kCuda),
      sparse(Device::kCuda, false);
  run(fast, full_);
  EXPECT_EQ(num_plans(fast), 2);
  run(fast, {0, 256, 500, 600, 700, 800});  // as many when rounded
  EXPECT_EQ(num_plans(fast), 2);
  run(reproducible, full_);
  EXPECT_EQ(num_plans(reproducible), 0);
  run(sparse, {0, 256, 257, 258, 259, 260, 261, 262, 263, 264});  // 16 of 256 for 264 tokens
  EXPECT_EQ(num_plans(sparse), 0);
}

TEST_F(AttentionCudnnGpuTest, AgreesWithOurKernelsWhateverTheWorkspaceHeld) {
  const Stream fast(Device::kCuda, false), reproducible(Device::kCuda);
  constexpr int64_t kBytes = 64 << 20;  // more than is needed
  void* workspace = backend::libraries_of(fast).workspace(kBytes);
  CUDA_CHECK(cudaMemsetAsync(workspace, 0xff, kBytes, fast.cuda()));  // NaN
  expect_agreement(run(fast, full_), run(reproducible, full_));
  EXPECT_EQ(num_plans(fast), 2);
}

TEST_F(AttentionCudnnGpuTest, CanBeRecordedInAGraph) {
  const Stream fast(Device::kCuda, false), reproducible(Device::kCuda);
  const Attention attention(full_);
  attention.enqueue(fast);
  EXPECT_EQ(num_plans(fast), 2);
  const CudaGraph graph(fast, [&] { attention.enqueue(fast); });
  attention.forget_results(fast);
  graph.launch(fast);
  graph.launch(fast);
  expect_agreement(attention.results(), run(reproducible, full_));
}

}  // namespace
}  // namespace mirabelle::testing
