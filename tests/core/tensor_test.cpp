#include "mirabelle/core/tensor.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <sstream>

#include "mirabelle/core/buffer.h"
#include "mirabelle/core/unique_handle.h"
#include "support/errors.h"

namespace mirabelle::testing {
namespace {

TEST(ShapeTest, CountsItsElements) {
  EXPECT_EQ(Shape().num_elements(), 1);
  EXPECT_EQ((Shape{0}).num_elements(), 0);
  EXPECT_EQ((Shape{3, 0, 5}).num_elements(), 0);
  EXPECT_EQ((Shape{2, 3, 4, 5, 6}).num_elements(), 720);
  EXPECT_EQ((Shape{100000, 100000}).num_elements(), 10000000000);
}

TEST(ShapeTest, ComparesRankAndExtents) {
  EXPECT_EQ((Shape{2, 3}), (Shape{2, 3}));
  EXPECT_NE((Shape{2, 3}), (Shape{3, 2}));
  EXPECT_NE((Shape{2}), (Shape{2, 0}));
  EXPECT_NE(Shape(), Shape{0});
}

TEST(ShapeTest, PrintsAsAList) {
  std::ostringstream text;
  text << Shape{2, 30} << Shape();
  EXPECT_EQ(text.str(), "[2, 30][]");
}

TEST(ShapeTest, RefusesMoreThanFiveAxes) {
  expect_error("a shape has at most 5 extents, not 6", [] { Shape{1, 2, 3, 4, 5, 6}; });
}

TEST(TensorViewTest, RowsOfAnyRankStartAtTheRightElement) {
  int32_t data[48] = {};
  for (const Shape& shape :
       {Shape{4}, Shape{4, 2}, Shape{4, 2, 3}, Shape{4, 1, 2, 3}, Shape{4, 2, 1, 3, 2}}) {
    const TensorView rows = view_of(data, shape).rows(1, 3);
    EXPECT_EQ(rows.as<int32_t>(), data + shape.num_elements() / 4) << shape;
    EXPECT_EQ(rows.num_elements(), shape.num_elements() / 2);
    EXPECT_EQ(rows.shape.rank(), shape.rank());
    EXPECT_EQ(rows.shape[0], 2);
  }
  EXPECT_TRUE(view_of(data, {4, 2}).rows(4, 4).empty());
  EXPECT_TRUE(view_of(data, {0, 2}).rows(0, 0).empty());
}

TEST(TensorViewTest, RefusesRowsOutOfRange) {
  float data[8] = {};
  const TensorView x = view_of(data, {4, 2});
  expect_error("rows [3, 5) of a tensor of shape [4, 2]", [&] { x.rows(3, 5); });
  expect_error("rows [-1, 2)", [&] { x.rows(-1, 2); });
  expect_error("rows [3, 2)", [&] { x.rows(3, 2); });
  expect_error("of shape []", [&] { view_of(data, {}).rows(0, 0); });
}

TEST(TensorViewTest, RefusesTheWrongTypeAndReshapesOfAnotherSize) {
  float data[8] = {};
  const TensorView x = view_of(data, {4, 2});
  EXPECT_EQ(x.reshaped({2, 2, 2}).as<float>(), data);
  EXPECT_EQ(x.bytes(), 32);
  expect_error("wanted a int32 tensor, got float32", [&] { x.as<int32_t>(); });
  expect_error("a tensor of shape [4, 2] cannot be seen as [3, 3]", [&] { x.reshaped({3, 3}); });
}

TEST(TensorViewTest, ADefaultViewIsAbsent) {
  const float x = 1;
  EXPECT_FALSE(TensorView{});
  EXPECT_TRUE(view_of(&x, {1}));
}

TEST(DTypeTest, SizesAndNamesAreThoseOfTheTypes) {
  EXPECT_EQ(size_in_bytes(DType::kFloat32), 4);
  EXPECT_EQ(size_in_bytes(DType::kFloat64), 8);
  EXPECT_EQ(size_in_bytes(DType::kInt32), 4);
  EXPECT_EQ(size_in_bytes(DType::kInt64), 8);
  EXPECT_EQ(size_in_bytes(DType::kUint8), 1);
  EXPECT_STREQ(to_string(DType::kUint8), "uint8");
  expect_error("unknown dtype 99", [] { size_in_bytes(static_cast<DType>(99)); });
}

TEST(BufferTest, IsZeroedAndAligned) {
  for (int64_t n : {0, 1, 7, 100000}) {
    const Buffer buffer({n, 3}, DType::kFloat32);
    EXPECT_EQ(buffer.bytes(), 12 * n);
    EXPECT_EQ(buffer.view().shape, (Shape{n, 3}));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u);
    for (int64_t i = 0; i < 3 * n; ++i) ASSERT_EQ(buffer.view().as<float>()[i], 0);
  }
}

TEST(BufferTest, OfBytesIsSeenAsBytes) {
  const Buffer buffer(10, Device::kCpu);
  EXPECT_EQ(buffer.view().shape, Shape{10});
  EXPECT_EQ(buffer.view().dtype, DType::kUint8);
}

TEST(BufferTest, PinnedIsHostMemoryThatIsZeroed) {
#ifdef MIRABELLE_CUDA
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU";
  for (int64_t n : {0, 1, 7, 100000}) {
    const Buffer buffer = Buffer::pinned({n, 3}, DType::kInt32);
    EXPECT_EQ(buffer.bytes(), 12 * n);
    EXPECT_EQ(buffer.view().shape, (Shape{n, 3}));
    EXPECT_EQ(buffer.view().device, Device::kCpu);
    for (int64_t i = 0; i < 3 * n; ++i) ASSERT_EQ(buffer.view().as<int32_t>()[i], 0);
  }
#else
  expect_error("this build has no cuda backend", [] { Buffer::pinned({4}, DType::kInt32); });
#endif
}

TEST(BufferTest, RefusesMissingDevicesAndImpossibleSizes) {
#ifndef MIRABELLE_CUDA
  expect_error("this build has no cuda backend", [] { Buffer(4, Device::kCuda); });
#endif
  expect_error("a buffer of -4 bytes", [] { Buffer(-4, Device::kCpu); });
#ifndef __SANITIZE_ADDRESS__  // which ends the program instead
  expect_error("out of memory", [] { Buffer(int64_t{1} << 60, Device::kCpu); });
#endif
}

TEST(ArenaTest, ACountingArenaLearnsWhatARealOneNeeds) {
  const auto allocate = [](Arena& arena) {
    arena.allocate({3}, DType::kFloat32);  // 64 bytes after alignment
    const int64_t mark = arena.bytes_used();
    arena.allocate({100}, DType::kFloat64);  // 832
    arena.rewind(mark);
    return arena.allocate({17}, DType::kInt32);  // 128
  };
  Arena counting(Device::kCpu);
  EXPECT_FALSE(allocate(counting));
  EXPECT_EQ(counting.bytes_used(), 192);
  EXPECT_EQ(counting.peak_bytes(), 896);
  Arena real(counting.peak_bytes(), Device::kCpu);
  const TensorView last = allocate(real);
  EXPECT_TRUE(last);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(last.data) % 64, 0u);
  EXPECT_EQ(real.peak_bytes(), 896);
}

TEST(ArenaTest, ViewsDoNotOverlap) {
  Arena arena(256, Device::kCpu);
  const TensorView a = arena.allocate({3}, DType::kFloat32),
                   b = arena.allocate({48}, DType::kInt32);
  EXPECT_EQ(static_cast<char*>(b.data) - static_cast<char*>(a.data), 64);
  EXPECT_EQ(b.shape, Shape{48});
}

TEST(ArenaTest, RefusesMoreThanItHas) {
  Arena arena(128, Device::kCpu);
  arena.allocate({1}, DType::kUint8);
  expect_error("the arena of 128 bytes has 64 left; 128 are wanted for [65]",
               [&] { arena.allocate({65}, DType::kUint8); });
  EXPECT_TRUE(arena.allocate({64}, DType::kUint8));
}

TEST(ErrorTest, CarriesItsKindAndAllPartsOfTheMessage) {
  expect_error(ErrorKind::kUsage, "rank 3 of [2, 4]", [] {
    MIRABELLE_CHECK_USAGE(1 > 2, "rank ", 3, " of ", Shape{2, 4});
  });
  expect_error(ErrorKind::kData, "bad", [] { MIRABELLE_CHECK_DATA(false, "bad"); });
  expect_error(ErrorKind::kOther, "bad", [] { MIRABELLE_CHECK(false, "bad"); });
  MIRABELLE_CHECK(true, "never evaluated");
}

TEST(ErrorTest, KindsAreTheExitStatusOfTheExecutables) {
  EXPECT_EQ(static_cast<int>(ErrorKind::kOther), 1);
  EXPECT_EQ(static_cast<int>(ErrorKind::kUsage), 2);
  EXPECT_EQ(static_cast<int>(ErrorKind::kData), 3);
}

int destroyed = 0;
void destroy(int) { ++destroyed; }

TEST(UniqueHandleTest, DestroysOnceWhateverMoves) {
  using Handle = UniqueHandle<int, destroy, -1>;
  destroyed = 0;
  {
    Handle first(5), second(std::move(first)), third;
    EXPECT_FALSE(first);
    EXPECT_EQ(second.get(), 5);
    third = std::move(second);
    EXPECT_EQ(third.get(), 5);
    EXPECT_FALSE(second);
    Handle released(6);
    EXPECT_EQ(released.release(), 6);
  }
  EXPECT_EQ(destroyed, 1);
}

TEST(BFloat16Test, RoundsToTheNearestAndTiesToEven) {
  constexpr float kUnit = 0x1p-7f;  // between neighbours of 1
  const auto rounded = [](float value) { return static_cast<float>(BFloat16(value)); };
  EXPECT_EQ(rounded(1), 1);
  EXPECT_EQ(rounded(1 + 0.49f * kUnit), 1);
  EXPECT_EQ(rounded(1 + 0.51f * kUnit), 1 + kUnit);
  EXPECT_EQ(rounded(1 + 0.5f * kUnit), 1);
  EXPECT_EQ(rounded(1 + 1.5f * kUnit), 1 + 2 * kUnit);
  EXPECT_EQ(rounded(-1 - 1.5f * kUnit), -1 - 2 * kUnit);
  EXPECT_EQ(rounded(0x1.fffffep127f), std::numeric_limits<float>::infinity());
  EXPECT_EQ(rounded(-std::numeric_limits<float>::infinity()),
            -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(rounded(std::numeric_limits<float>::quiet_NaN())));
  EXPECT_TRUE(std::isnan(rounded(std::bit_cast<float>(0x7F800001u))));  // would round to infinity
  EXPECT_EQ(BFloat16(-2.5f).bits, 0xC020);
}

}  // namespace
}  // namespace mirabelle::testing
