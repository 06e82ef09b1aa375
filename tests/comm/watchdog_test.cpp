// The watchdog while nothing is wrong. What it does when something is: job_end_test.py.
#include "comm/watchdog.h"

#include <gtest/gtest.h>

#include <csignal>
#include <functional>
#include <stdexcept>
#include <thread>
#include <vector>

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

// The waits of a communicator, whichever it is, without a word from who waits.
TEST(WatchdogTest, EveryWaitInACommunicatorIsAWaitForOthers) {
  using Wait = std::function<void()>;
  Communicator& world = test_world();
  const int last = world.size() - 1;
  std::int64_t value = 0;
  const auto bytes = std::as_writable_bytes(std::span(&value, 1));
  const auto pass_on = [&] {
    if (world.size() == 1) return;
    const Send send{bytes, 0};
    const Receive receive{bytes, last};
    if (world.rank() == 0) world.start({}, {&receive, 1})->wait();
    if (world.rank() == last) world.start({&send, 1}, {})->wait();
    world.barrier();
  };
  const std::vector<Wait> waits = {
      [&] { world.all_gather(bytes); },      [&] { world.barrier(); },
      [&] { world.broadcast(bytes, last); }, [&] { (void)world.all_reduce_max(1); },
      [&] { (void)world.split(0, 0); },      pass_on};
  for (const Wait& wait : waits) {
    Watchdog watchdog(world, {.interval = 20ms, .silence = 10s, .patience = 400ms});
    EXPECT_EQ(Watchdog::of_this_thread(), &watchdog);
    if (world.rank() == last) {  // at work, for much longer than the others' patience
      for (int i = 0; i < 25; ++i) {
        std::this_thread::sleep_for(40ms);
        watchdog.tick();
      }
    }
    wait();
  }
  EXPECT_EQ(Watchdog::of_this_thread(), nullptr);
}

TEST(WatchdogTest, ARankThatDoesNotSpeakIsFineWhileAnotherMakesProgress) {
  Watchdog watchdog(test_world(), {.interval = 20ms, .silence = 10s, .patience = 400ms});
  const auto end = Clock::now() + 1200ms;
  while (Clock::now() < end) {
    std::this_thread::sleep_for(20ms);
    if (test_world().rank() == 0) watchdog.tick();
  }
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
