#include "pipeline/watch/job_monitor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <thread>

#include "comm/launcher.h"
#include "tests/base/temporary_folder.h"

namespace roundhouse {
namespace {

using testing::HasSubstr;

class JobMonitorTest : public testing::Test {
 protected:
  std::unique_ptr<Communicator> world_ = make_local_communicator();
};

bool stops_within_seconds(JobMonitor& monitor, int seconds) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  while (std::chrono::steady_clock::now() < end) {
    monitor.tick();
    if (monitor.stop_requested()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

TEST_F(JobMonitorTest, EachSignalIsAWishToStop) {
  for (const int number : {SIGTERM, SIGUSR1, SIGINT}) {
    testing::internal::CaptureStderr();
    {
      JobMonitor monitor(*world_, nullptr, 600, 0);
      EXPECT_FALSE(monitor.stop_requested());
      ::raise(number);
      EXPECT_TRUE(stops_within_seconds(monitor, 5));
      EXPECT_TRUE(monitor.stop_requested());
    }
    const std::string text = testing::internal::GetCapturedStderr();
    EXPECT_THAT(text, HasSubstr("asked to stop by SIG"));
    EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1) << "said once: " << text;
  }
}

TEST_F(JobMonitorTest, ASecondInterruptEndsAtOnce) {
  const pid_t child = ::fork();
  if (child == 0) {
    JobMonitor monitor(*make_local_communicator(), nullptr, 600, 0);
    ::raise(SIGINT);
    if (!stops_within_seconds(monitor, 5)) ::_exit(3);
    ::raise(SIGINT);
    ::_exit(4);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_TRUE(WIFSIGNALED(status)) << status;
  EXPECT_EQ(WTERMSIG(status), SIGINT);
}

TEST_F(JobMonitorTest, AfterTheEndOnlyCtrlCStillCounts) {
  struct sigaction interrupt_before {
  }, interrupt{}, terminate{};
  ::sigaction(SIGINT, nullptr, &interrupt_before);
  { JobMonitor monitor(*world_, nullptr, 600, 0); }
  ::sigaction(SIGINT, nullptr, &interrupt);
  EXPECT_EQ(interrupt.sa_handler, interrupt_before.sa_handler);
  // srun sends it to the ranks that are still leaving; their exit code stands.
  ::sigaction(SIGTERM, nullptr, &terminate);
  EXPECT_EQ(terminate.sa_handler, SIG_IGN);
}

TEST_F(JobMonitorTest, TheTimeLimitStops) {
  testing::internal::CaptureStderr();
  {
    JobMonitor monitor(*world_, nullptr, 600, 0.2 / 60);
    EXPECT_FALSE(monitor.stop_requested());
    EXPECT_TRUE(stops_within_seconds(monitor, 5));
  }
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("asked to stop by the time limit"));
}

TEST_F(JobMonitorTest, UnitsOfOtherTeamsCount) {
  TemporaryFolder folder;
  Journal journal(folder.path());
  Journal of_another_rank(folder.path());
  testing::internal::CaptureStderr();
  {
    JobMonitor monitor(*world_, &journal, 600, 0);
    monitor.plan_units(8, 2, {{"block rtn-w4", {{"cost", 1}, {"left", 6}}}});
    of_another_rank.append({{"event", "block"}});
    of_another_rank.append({{"event", "block"}});
    monitor.event({{"event", "block"}});
    monitor.unit_done("rtn-w4 block 1", 1.5);
  }
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("[5/8] rtn-w4 block 1: 1.5 s"));
}

TEST_F(JobMonitorTest, EventsGoToTheJournalAndTicksToTheCallback) {
  TemporaryFolder folder;
  Journal journal(folder.path());
  JobMonitor monitor(*world_, &journal, 600, 0);
  int ticks = 0;
  monitor.on_tick([&] { ++ticks; });
  monitor.tick();
  monitor.event({{"event", "block"}});
  EXPECT_EQ(ticks, 1);
  EXPECT_EQ(read_journal(folder.path()).size(), 1u);
}

}  // namespace
}  // namespace roundhouse
