#include "mirabelle/core/progress.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>

namespace mirabelle {
namespace {

TEST(ProgressTest, TheLineHasPercentCountsRateAndTimeLeft) {
  EXPECT_EQ(progress_line("train", 4200, 10000, 0, 420, "loss 5.12"),
            "train  42%  4,200/10,000  10.0/s  9:40 left  loss 5.12");
}

TEST(ProgressTest, TheRateCountsFromTheFirstUpdate) {
  EXPECT_EQ(progress_line("train", 600, 1000, 500, 50, ""),
            "train  60%  600/1,000  2.00/s  3:20 left");
}

TEST(ProgressTest, TheLineMakesDoWithoutTotalRateOrText) {
  EXPECT_EQ(progress_line("read", 5, 0, 0, 0, ""), "read  5");
  EXPECT_EQ(progress_line("read", 5000000, 0, 0, 2, ""), "read  5,000,000  2,500,000/s");
  EXPECT_EQ(progress_line("read", 10, 10, 0, 2, ""), "read  100%  10/10  5.00/s");
  EXPECT_EQ(progress_line("read", 999, 1000, 999, 1, ""), "read  99%  999/1,000");
}

TEST(ProgressTest, FormatsDurationsAndCounts) {
  EXPECT_EQ(format_duration(0), "0:00");
  EXPECT_EQ(format_duration(75.4), "1:15");
  EXPECT_EQ(format_duration(3599.6), "1:00:00");
  EXPECT_EQ(format_duration(360000), "100:00:00");
  EXPECT_EQ(format_duration(-3), "0:00");
  EXPECT_EQ(format_count(0), "0");
  EXPECT_EQ(format_count(999), "999");
  EXPECT_EQ(format_count(1000), "1,000");
  EXPECT_EQ(format_count(-123456), "-123,456");
  EXPECT_EQ(format_count(1234567), "1,234,567");
}

TEST(ProgressTest, WithoutATerminalFewPlainLinesAppear) {
  std::ostringstream out;
  {
    Progress progress("train", out, false, 1000);
    for (int64_t done = 0; done <= 500; ++done) progress.update(done, 500, "x");
  }
  const std::string text = out.str();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1) << text;  // the last one only
  EXPECT_EQ(text.find("train  100%  500/500"), 0u) << text;
  EXPECT_EQ(text.find('\r'), std::string::npos);
}

TEST(ProgressTest, EveryUpdateIsShownWithoutAPause) {
  std::ostringstream out;
  Progress progress("train", out, false, 0);
  for (int64_t done = 1; done <= 5; ++done) progress.update(done, 5);
  const std::string text = out.str();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 5) << text;
}

TEST(ProgressTest, OnATerminalOneLineIsRewrittenAndTakenAway) {
  std::ostringstream out;
  {
    Progress progress("train", out, true, 1000);
    for (int64_t done = 0; done <= 100000; ++done) progress.update(done, 100000);
  }
  const std::string text = out.str();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 0);
  EXPECT_LT(std::count(text.begin(), text.end(), '\r'), 50);  // ten a second at most
  EXPECT_NE(text.find("100%"), std::string::npos);
  EXPECT_TRUE(text.ends_with("\r\033[K"));
}

TEST(ProgressTest, DisabledItShowsNothing) {
  ::testing::internal::CaptureStderr();
  {
    Progress progress("train", false, 0);
    progress.update(1, 2);
    progress.update(2, 2);
  }
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
}

}  // namespace
}  // namespace mirabelle
