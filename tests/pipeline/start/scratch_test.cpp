#include "pipeline/start/scratch.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/base/temporary_folder.h"

namespace roundhouse {
namespace {

TEST(ScratchTest, ALocalDiskBeforeTheRunsFolder) {
  const TemporaryFolder folder;
  if (local_scratch("run") == "run") ::setenv("TMPDIR", folder.path().c_str(), 1);
  if (local_scratch("run") == "run") GTEST_SKIP() << "the folder for temporary files is in memory";
  ::unsetenv("SLURM_TMPDIR");
  ::unsetenv("TMPDIR");
  EXPECT_EQ(local_scratch("run"), "run");
  ::setenv("TMPDIR", folder.path().c_str(), 1);
  EXPECT_EQ(local_scratch("run"), folder.path());
  const auto job = folder.path() / "job";
  ::setenv("SLURM_TMPDIR", job.c_str(), 1);
  EXPECT_EQ(local_scratch("run"), folder.path()) << "it is not there";
  std::filesystem::create_directory(job);
  EXPECT_EQ(local_scratch("run"), job);
  ::setenv("SLURM_TMPDIR", "/dev/shm", 1);
  EXPECT_EQ(local_scratch("run"), folder.path()) << "what is in memory does not save memory";
  ::setenv("TMPDIR", "", 1);
  EXPECT_EQ(local_scratch("run"), "run");
}

}  // namespace
}  // namespace roundhouse
