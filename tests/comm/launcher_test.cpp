#include "comm/launcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "base/error.h"

namespace roundhouse {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

class LauncherTest : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* name :
         {"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_SIZE", "SLURM_STEP_ID",
          "SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"}) {
      unsetenv(name);
    }
  }
  static void set(const char* name, const char* value) { setenv(name, value, 1); }
};

TEST_F(LauncherTest, APlainShellIsNoLaunch) { EXPECT_FALSE(started_by_launcher()); }

TEST_F(LauncherTest, MpirunAndPmixAreLaunches) {
  set("OMPI_COMM_WORLD_SIZE", "1");
  EXPECT_TRUE(started_by_launcher());
  SetUp();
  set("PMIX_RANK", "0");
  EXPECT_TRUE(started_by_launcher());
}

TEST_F(LauncherTest, ABatchScriptIsNoLaunch) {
  set("SLURM_PROCID", "0");
  set("SLURM_NTASKS", "8");
  EXPECT_FALSE(started_by_launcher());
}

TEST_F(LauncherTest, AStepOfOneTaskIsNoLaunchWhateverTheAllocationHas) {
  set("SLURM_STEP_ID", "0");
  set("SLURM_PROCID", "0");
  set("SLURM_NTASKS", "8");
  set("SLURM_STEP_NUM_TASKS", "1");
  EXPECT_FALSE(started_by_launcher());
}

TEST_F(LauncherTest, SrunWithSeveralTasksNeedsPmix) {
  set("SLURM_STEP_ID", "0");
  set("SLURM_PROCID", "1");
  set("SLURM_NTASKS", "4");
  EXPECT_THAT([] { started_by_launcher(); }, ThrowsMessage<Error>(HasSubstr("srun --mpi=pmix")));
  set("PMIX_RANK", "1");
  EXPECT_TRUE(started_by_launcher());
}

TEST_F(LauncherTest, TheLauncherOfAnotherMpiIsAnError) {
  set("PMI_SIZE", "4");
  EXPECT_THAT([] { started_by_launcher(); }, ThrowsMessage<Error>(HasSubstr("another MPI")));
}

TEST_F(LauncherTest, WithoutALauncherThereIsOneRank) {
  int argc = 0;
  char** argv = nullptr;
  LaunchSession session(argc, argv);
  EXPECT_EQ(session.world()->size(), 1);
  EXPECT_EQ(session.local_rank(), 0);
  EXPECT_EQ(session.local_size(), 1);
}

TEST_F(LauncherTest, NcclLaunchesInOrderUnlessTheUserSaysOtherwise) {
  int argc = 0;
  char** argv = nullptr;
  unsetenv("NCCL_LAUNCH_ORDER_IMPLICIT");
  { const LaunchSession session(argc, argv); }
  EXPECT_STREQ(std::getenv("NCCL_LAUNCH_ORDER_IMPLICIT"), "1");
  set("NCCL_LAUNCH_ORDER_IMPLICIT", "0");
  { const LaunchSession session(argc, argv); }
  EXPECT_STREQ(std::getenv("NCCL_LAUNCH_ORDER_IMPLICIT"), "0");
}

TEST_F(LauncherTest, AbortPrintsOneLineAndExitsWithTheCode) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(abort_job(75, "two\nlines"), testing::ExitedWithCode(75),
              "^\\[rank 0\\] two\\\\nlines\n$");
}

}  // namespace
}  // namespace roundhouse
