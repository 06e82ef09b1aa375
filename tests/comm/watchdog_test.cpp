// The watchdog while nothing is wrong. What it does when something is: job_end_test.py.
#include "comm/watchdog.h"

#include <gtest/gtest.h>

#include <csignal>
#include <stdexcept>
#include <thread>

#include "base/error.h"
#include "comm/launcher.h"
#include "tests/comm/mpi_world.h"

namespace roundhouse {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;
using namespace std::chrono_literals;

const WatchdogOptions kQuick{.interval = 50ms, .silence = 10s, .patience = 20s};

TEST(WatchdogTest, LeavesQuicklyWhenAllLeave) {
  { Watchdog watchdog(test_world(), {}); }
  const auto begin = Clock::now();
  { Watchdog watchdog(test_world(), {}); }
  EXPECT_LT(Clock::now() - begin, 900ms) << "an interval is 1 s: leaving does not wait for it";
}

TEST(WatchdogTest, WaitsForTheLastToLeave) {
  const auto begin = Clock::now();
  {
    Watchdog watchdog(test_world(), kQuick);
    if (test_world().rank() == test_world().size() - 1) std::this_thread::sleep_for(500ms);
  }
  EXPECT_GE(Clock::now() - begin, 450ms);
}

TEST(WatchdogTest, AnyRankCanAskAllToStop) {
  for (int asking = 0; asking < test_world().size(); ++asking) {
    Watchdog watchdog(test_world(), kQuick);
    EXPECT_FALSE(watchdog.stop_requested());
    test_world().barrier();
    if (test_world().rank() == asking) watchdog.request_stop();
    const auto begin = Clock::now();
    while (!watchdog.stop_requested()) {
      ASSERT_LT(Clock::now() - begin, 5s)
          << "rank " << test_world().rank() << " was not told by rank " << asking;
      std::this_thread::sleep_for(5ms);
      watchdog.tick();
    }
  }
}

Watchdog* in_handler = nullptr;

TEST(WatchdogTest, ASignalHandlerCanAskToStop) {
  Watchdog watchdog(test_world(), kQuick);
  in_handler = &watchdog;
  const auto before = std::signal(SIGUSR1, [](int) { in_handler->request_stop(); });
  std::raise(SIGUSR1);
  EXPECT_TRUE(watchdog.stop_requested());
  std::signal(SIGUSR1, before);
}

TEST(WatchdogTest, WorkWithoutTicksIsFineWithinThePatience) {
  Watchdog watchdog(test_world(), {.interval = 20ms, .silence = 10s, .patience = 4s});
  const auto end = Clock::now() + 1500ms;
  while (Clock::now() < end) {  // busy: the machine is oversubscribed while this runs at 4 ranks
  }
}

TEST(WatchdogTest, WaitingLongerThanThePatienceIsFineWhileOneRankWorks) {
  Watchdog watchdog(test_world(), {.interval = 20ms, .silence = 10s, .patience = 700ms});
  if (test_world().rank() == 0) {
    for (int i = 0; i < 40; ++i) {
      std::this_thread::sleep_for(40ms);
      watchdog.tick();
    }
  }
  const Watchdog::Waiting waiting(&watchdog);
  test_world().barrier();
}

TEST(WatchdogTest, WaitingWithoutAWatchdogDoesNothing) { const Watchdog::Waiting waiting(nullptr); }

TEST(WatchdogTest, StopsAtOnceWhileAnExceptionUnwinds) {
  const auto alone = make_local_communicator();
  const auto begin = Clock::now();
  try {
    Watchdog watchdog(*alone, {});
    throw Error("out of here");
  } catch (const Error&) {
  }
  EXPECT_LT(Clock::now() - begin, 500ms);
}

TEST(WatchdogTest, ASilenceNoLongerThanTheIntervalIsAnError) {
  const auto alone = make_local_communicator();
  EXPECT_THROW(Watchdog(*alone, {.interval = 1s, .silence = 1s, .patience = 1s}), Error);
}

}  // namespace
}  // namespace roundhouse
