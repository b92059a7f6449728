#include "mirabelle/core/memory_plan.h"

#include <gtest/gtest.h>

#include "support/errors.h"

namespace mirabelle::testing {
namespace {

TEST(MemoryPlanTest, AddsUpAndSaysWhat) {
  MemoryPlan plan;
  EXPECT_EQ(plan.total(), 0);
  plan.add("weights", 3 << 19);
  plan.add("activations", 512);
  EXPECT_EQ(plan.total(), (3 << 19) + 512);
  EXPECT_EQ(plan.describe(), "weights 1.5 MiB, activations 512 B: 1.5 MiB");
}

TEST(MemoryPlanTest, RefusesWhatDoesNotFit) {
  MemoryPlan plan;
  plan.add("weights", 2048);
  plan.check_fits(2048, Device::kCpu, "");
  expect_error(
      ErrorKind::kUsage,
      "a rank needs 2.0 KiB on cuda, where it can have 2.0 KiB: weights 2.0 KiB: 2.0 KiB; buy more",
      [&] { plan.check_fits(2047, Device::kCuda, "buy more"); });
}

TEST(MemoryPlanTest, FormatsBytes) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(1023), "1023 B");
  EXPECT_EQ(format_bytes(1024), "1.0 KiB");
  EXPECT_EQ(format_bytes(int64_t{80} << 30), "80.0 GiB");
  EXPECT_EQ(format_bytes(int64_t{3} << 50), "3072.0 TiB");
}

TEST(MemoryPlanTest, KnowsWhatThisMachineHas) { EXPECT_GT(available_bytes(Device::kCpu), 1 << 20); }

}  // namespace
}  // namespace mirabelle::testing
