#include "mirabelle/core/activity.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <memory>

#include "support/errors.h"

namespace mirabelle {
namespace {

void sleep_milliseconds(int milliseconds) { ::usleep(milliseconds * 1000); }

class ActivityTest : public ::testing::Test {
 protected:
  ~ActivityTest() override { set_current_step(-1); }
};

TEST_F(ActivityTest, NestsAndEndsWithTheScope) {
  EXPECT_EQ(current_activity(), "");
  {
    const Activity outer("forward");
    EXPECT_EQ(current_activity(), "forward");
    set_current_step(0);
    {
      const Activity wait("all_reduce", "tensor-parallel");
      EXPECT_EQ(current_activity(), "step 0, forward, all_reduce of the tensor-parallel group");
    }
    set_current_step(1234567890123);
    EXPECT_EQ(current_activity(), "step 1234567890123, forward");
  }
  EXPECT_EQ(current_activity(), "step 1234567890123");
}

TEST_F(ActivityTest, CutsLongTextsAndOnlyCountsDeepOnes) {
  const std::string longest(31, 'x');
  const std::string longer = longest + "yz";
  {
    const Activity wait(longer.c_str(), longer);
    EXPECT_EQ(current_activity(), longest + " of the " + longest + " group");
  }
  const Activity one("1"), two("2"), three("3"), four("4"), five("5"), six("6"), seven("7");
  {
    const Activity eight("8");
    const Activity nine("9"), ten("10");
    EXPECT_EQ(current_activity(), "1, 2, 3, 4, 5, 6, 7, 8");
  }
  const Activity again("again");
  EXPECT_EQ(current_activity(), "1, 2, 3, 4, 5, 6, 7, again");
}

TEST_F(ActivityTest, AnExceptionEndsIt) {
  try {
    const Activity activity("forward");
    throw_error(ErrorKind::kOther, "frost");
  } catch (const Error&) {
  }
  EXPECT_EQ(current_activity(), "");
}

/// In processes of their own, because they end.
class WatchdogTest : public ActivityTest {
 protected:
  WatchdogTest() { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

TEST_F(WatchdogTest, EndsTheProcessThatWaitsTooLong) {
  const auto stall = [] {
    const Watchdog watchdog(0.2, 3);
    set_current_step(123);
    const Activity backward("backward");
    const Activity wait("all_reduce", "data-parallel");
    sleep_milliseconds(20000);
    ::_exit(0);
  };
  EXPECT_EXIT(stall(), ::testing::ExitedWithCode(1),
              "^rank 3: waited 0.2 s in all_reduce of the data-parallel group at step 123; a rank "
              "of it is stalled or dead\n$");
}

TEST_F(WatchdogTest, NamesNoStepBeforeTheFirst) {
  const auto stall = [] {
    const Watchdog watchdog(0.1, 0);
    const Activity wait("barrier", "world");
    sleep_milliseconds(20000);
    ::_exit(0);
  };
  EXPECT_EXIT(stall(), ::testing::ExitedWithCode(1),
              "^rank 0: waited 0.1 s in barrier of the world group; a rank of it");
}

TEST_F(WatchdogTest, LeavesWorkAndManyShortWaitsAlone) {
  const auto work = [] {
    const Watchdog watchdog(0.5, 3);
    {
      const Activity activity("forward");
      sleep_milliseconds(1000);
    }
    for (int i = 0; i < 100; ++i) {
      const Activity wait("all_reduce", "data-parallel");
      sleep_milliseconds(10);
    }
    ::_exit(7);
  };
  EXPECT_EXIT(work(), ::testing::ExitedWithCode(7), "^rank 3: has been for 0.5 s in forward\n$");
}

TEST_F(WatchdogTest, ReportsLongWorkOnce) {
  const auto work = [] {
    const Watchdog watchdog(0.2, 3);
    set_current_step(123);
    {
      const Activity activity("checkpoint");
      sleep_milliseconds(1500);
    }
    ::_exit(7);
  };
  EXPECT_EXIT(work(), ::testing::ExitedWithCode(7),
              "^rank 3: has been for 0.2 s in step 123, checkpoint\n$");
}

TEST_F(WatchdogTest, OneWithinAnotherHasTheLastWord) {
  const auto stall = [](double outer, double inner, bool after) {
    const Watchdog start(outer, -1);
    auto watchdog = std::make_unique<Watchdog>(inner, 3);
    if (after) watchdog.reset();
    {
      const Activity wait("MPI_Finalize", "world");
      sleep_milliseconds(1500);
    }
    ::_exit(7);
  };
  const char* const line = "^rank 3: waited 0.3 s in MPI_Finalize of the world group; a rank";
  EXPECT_EXIT(stall(60, 0.3, false), ::testing::ExitedWithCode(1), line);
  EXPECT_EXIT(stall(60, 0.3, true), ::testing::ExitedWithCode(1), line);
  EXPECT_EXIT(stall(0.3, 60, false), ::testing::ExitedWithCode(7), "^$");
  EXPECT_EXIT(stall(0.3, 0, false), ::testing::ExitedWithCode(7), "^$");
}

TEST_F(WatchdogTest, KnowsNoRankAtTheStart) {
  const auto stall = [] {
    const Watchdog watchdog(0.2, -1);
    const Activity wait("MPI_Init", "world");
    sleep_milliseconds(20000);
    ::_exit(0);
  };
  EXPECT_EXIT(stall(), ::testing::ExitedWithCode(1),
              "^waited 0.2 s in MPI_Init of the world group");
}

TEST_F(WatchdogTest, WithoutATimeoutWaitsForEver) {
  const auto wait = [] {
    const Watchdog watchdog(0, 3);
    const Activity activity("all_reduce", "data-parallel");
    sleep_milliseconds(500);
    ::_exit(7);
  };
  EXPECT_EXIT(wait(), ::testing::ExitedWithCode(7), "^$");
}

TEST_F(WatchdogTest, SaysWhatSigtermInterrupted) {
  const auto work = [] {
    const Watchdog watchdog(60, 1);
    set_current_step(123);
    const Activity activity("forward");
    std::raise(SIGTERM);
  };
  EXPECT_EXIT(work(), ::testing::KilledBySignal(SIGTERM),
              "^rank 1: ended by SIGTERM while in step 123, forward\n$");
}

TEST_F(WatchdogTest, SaysWhenNothingIsKnown) {
  const auto idle = [] {
    const Watchdog watchdog(0, 1);
    std::raise(SIGTERM);
  };
  EXPECT_EXIT(idle(), ::testing::KilledBySignal(SIGTERM), "^rank 1: ended by SIGTERM\n$");
}

TEST_F(WatchdogTest, LeavesNothingBehind) {
  const auto work = [] {
    { const Watchdog watchdog(0.1, 1); }
    const Activity wait("all_reduce", "data-parallel");
    sleep_milliseconds(300);
    std::raise(SIGTERM);
  };
  EXPECT_EXIT(work(), ::testing::KilledBySignal(SIGTERM), "^$");
}

class StopSignalsTest : public WatchdogTest {};

TEST_F(StopSignalsTest, TheFirstOneOnlyAsks) {
  const auto work = [] {
    StopSignals signals;
    const Watchdog watchdog(60, 1);
    if (stop_is_requested()) ::_exit(1);
    set_current_step(123);
    const Activity activity("forward");
    std::raise(SIGUSR1);
    if (!stop_is_requested()) ::_exit(2);
    std::raise(SIGTERM);  // within a second: still the first
    ::_exit(7);
  };
  EXPECT_EXIT(work(), ::testing::ExitedWithCode(7),
              "^rank 1: SIGUSR1 while in step 123, forward; stops as soon as it can\n$");
}

TEST_F(StopSignalsTest, OneThatComesLaterEndsTheProcess) {
  const auto work = [](int first, int second) {
    const StopSignals signals;  // before there is a rank
    std::raise(first);
    const Watchdog watchdog(60, 1);
    sleep_milliseconds(1100);
    set_current_step(123);
    std::raise(second);
  };
  EXPECT_EXIT(work(SIGTERM, SIGUSR1), ::testing::KilledBySignal(SIGTERM),
              "^SIGTERM; stops as soon as it can\nrank 1: ended by SIGUSR1 while in step 123\n$");
  EXPECT_EXIT(work(SIGUSR1, SIGTERM), ::testing::KilledBySignal(SIGTERM),
              "^SIGUSR1; stops as soon as it can\nrank 1: ended by SIGTERM while in step 123\n$");
}

TEST_F(StopSignalsTest, CanBeIgnoredAtTheEnd) {
  const auto work = [] {
    StopSignals signals;
    {
      const Watchdog watchdog(60, 1);
      signals.ignore();
    }
    std::raise(SIGTERM);
    std::raise(SIGUSR1);
    ::_exit(stop_is_requested() ? 1 : 7);
  };
  EXPECT_EXIT(work(), ::testing::ExitedWithCode(7), "^$");
}

TEST_F(StopSignalsTest, LeavesNothingBehind) {
  const auto work = [] {
    {
      const StopSignals signals;
      std::raise(SIGUSR1);
    }
    if (stop_is_requested()) ::_exit(1);
    const Watchdog watchdog(60, 1);
    std::raise(SIGTERM);
  };
  EXPECT_EXIT(work(), ::testing::KilledBySignal(SIGTERM), "rank 1: ended by SIGTERM\n$");
}

TEST_F(WatchdogTest, RefusesNegativeTimeouts) {
  testing::expect_error("a watchdog waits 0 seconds or more, not -1", [] { Watchdog(-1, 0); });
}

}  // namespace
}  // namespace mirabelle
