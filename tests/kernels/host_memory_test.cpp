// Made-up /proc and /sys, and the control groups of this machine where they let a test make one.
#include "kernels/host_memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <string>

#include "tests/base/temporary_folder.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kGiB = std::size_t{1} << 30;
constexpr const char* kV2Mount =
    "25 20 0:22 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
constexpr const char* kV1Mount =
    "31 20 0:28 / /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory\n";

class HostMemoryTest : public testing::Test {
 protected:
  HostMemoryTest() {
    write("proc/meminfo", "MemTotal:       999 kB\nMemFree:  1 kB\nMemAvailable: 104857600 kB\n");
  }
  void write(const fs::path& path, const std::string& text) {
    fs::create_directories((folder_.path() / path).parent_path());
    std::ofstream(folder_.path() / path) << text;
  }
  void set_group(const std::string& line, const std::string& mounts) {
    write("proc/self/cgroup", line);
    write("proc/self/mountinfo",
          "20 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n" + mounts);
  }
  void set_v2(const std::string& group, const std::string& max, const std::string& high,
              std::size_t current, std::size_t inactive = 0, std::size_t active = 0) {
    const fs::path folder = "sys/fs/cgroup" + group;
    write(folder / "memory.max", max + "\n");
    write(folder / "memory.high", high + "\n");
    write(folder / "memory.current", std::to_string(current) + "\n");
    write(folder / "memory.stat", "anon 7\nfile 123456789\ninactive_file " +
                                      std::to_string(inactive) + "\nactive_file " +
                                      std::to_string(active) + "\nslab 5\n");
  }
  void set_v1(const std::string& group, std::size_t limit, std::size_t usage,
              std::size_t hierarchical, std::size_t cached = 0) {
    const fs::path folder = "sys/fs/cgroup/memory" + group;
    write(folder / "memory.limit_in_bytes", std::to_string(limit) + "\n");
    write(folder / "memory.usage_in_bytes", std::to_string(usage) + "\n");
    write(folder / "memory.stat", "inactive_file 99999\nhierarchical_memory_limit " +
                                      std::to_string(hierarchical) + "\ntotal_inactive_file " +
                                      std::to_string(cached) + "\ntotal_active_file 0\n");
  }
  std::size_t available() const { return available_host_memory(folder_.path()); }

  TemporaryFolder folder_;
};

constexpr std::size_t kNone = 9223372036854771712u;  // what v1 writes where there is no limit

TEST_F(HostMemoryTest, IsWhatTheMachineHasWhereNoGroupLimitsIt) {
  EXPECT_EQ(available(), 100 * kGiB);  // not even the files that tell
  set_group("0::/user.slice\n", kV2Mount);
  set_v2("/user.slice", "max", "max", 70 * kGiB);
  EXPECT_EQ(available(), 100 * kGiB);
  set_group("4:memory:/user\n", kV1Mount);
  set_v1("/user", kNone, 70 * kGiB, kNone);
  EXPECT_EQ(available(), 100 * kGiB);
}

TEST_F(HostMemoryTest, CachedFilesOfAGroupAreFree) {
  set_group("0::/job\n", kV2Mount);
  set_v2("/job", std::to_string(40 * kGiB), "max", 30 * kGiB, 5 * kGiB, 7 * kGiB);
  EXPECT_EQ(available(), 22 * kGiB);
}

TEST_F(HostMemoryTest, TheLowerOfTheTwoLimitsOfAGroupCounts) {
  set_group("0::/job\n", kV2Mount);
  set_v2("/job", std::to_string(40 * kGiB), std::to_string(35 * kGiB), 30 * kGiB);
  EXPECT_EQ(available(), 5 * kGiB);
  set_v2("/job", "max", std::to_string(20 * kGiB), 30 * kGiB);  // over it: reclaimed, not killed
  EXPECT_EQ(available(), 0u);
}

// Slurm limits the job and its steps; the task's own group has no limit.
TEST_F(HostMemoryTest, EveryGroupUpToTheRootCounts) {
  set_group("0::/slurm/job_7/step_0/task_3\n", kV2Mount);
  set_v2("/slurm/job_7/step_0/task_3", "max", "max", kGiB);
  set_v2("/slurm/job_7/step_0", std::to_string(60 * kGiB), "max", 10 * kGiB);
  set_v2("/slurm/job_7", std::to_string(60 * kGiB), "max", 20 * kGiB, kGiB);
  EXPECT_EQ(available(), 41 * kGiB);
  set_v2("/slurm", std::to_string(90 * kGiB), "max", 80 * kGiB);
  EXPECT_EQ(available(), 10 * kGiB);
}

TEST_F(HostMemoryTest, KnowsVersion1AndItsNeighboursInOneHybridTree) {
  set_group("12:cpuset:/x\n4:hugetlb,memory:/slurm/job_7\n0::/\n",
            std::string(kV1Mount) +
                "41 20 0:38 / /sys/fs/cgroup/unified rw shared:4 - cgroup2 cgroup2 rw\n"
                "42 20 0:39 / /sys/fs/cgroup/cpuset rw shared:4 - cgroup cgroup rw,cpuset\n");
  set_v1("/slurm/job_7", kNone, 10 * kGiB, kNone);
  set_v1("/slurm", 50 * kGiB, 20 * kGiB, 50 * kGiB, 4 * kGiB);
  EXPECT_EQ(available(), 34 * kGiB);
}

// The limit stands in a group above what a container shows; its own memory.stat knows.
TEST_F(HostMemoryTest, AContainerOfVersion1KnowsOfLimitsAboveIt) {
  set_group("4:memory:/docker/abc\n",
            "31 20 0:28 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n");
  set_v1("", kNone, 10 * kGiB, 32 * kGiB);
  EXPECT_EQ(available(), 22 * kGiB);
}

TEST_F(HostMemoryTest, AMountMayBeginBelowTheRootAndHaveAnyName) {
  set_group("0::/kube pods/pod1/c\n",
            "25 20 0:22 /kube\\040pods /my\\040groups ro - cgroup2 cgroup2 rw\n");
  write("my groups/pod1/memory.max", std::to_string(8 * kGiB));
  write("my groups/pod1/memory.current", std::to_string(3 * kGiB));
  EXPECT_EQ(available(), 5 * kGiB);
  // A path that the mount does not hold: the mount's own group is the one that is known.
  set_group("0::/../elsewhere\n", "25 20 0:22 / /my\\040groups ro - cgroup2 cgroup2 rw\n");
  write("my groups/memory.max", std::to_string(4 * kGiB));
  EXPECT_EQ(available(), 4 * kGiB);
}

// Puts this process into a group of its own below the one it is in, while it lives.
class RealGroup {
 public:
  RealGroup() {
    std::ifstream groups("/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {
      const bool v2 = line.starts_with("0::");
      const std::size_t memory = line.find(":memory:");
      if (!v2 && memory == std::string::npos) continue;
      const std::string path = v2 ? line.substr(3) : line.substr(memory + 8);
      before_ = fs::path(v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory") / path.substr(1);
      const fs::path own = before_ / ("roundhouse-test-" + std::to_string(getpid()));
      std::error_code failed;
      if (!fs::create_directory(own, failed) || failed) continue;
      own_ = own;
      const fs::path limit = own_ / (v2 ? "memory.max" : "memory.limit_in_bytes");
      if (fs::exists(limit) && enter(own_)) {
        std::ofstream(limit) << kLimit;
        std::size_t now = 0;
        std::ifstream(limit) >> now;
        limited_ = now == kLimit;
      }
      if (limited_) return;
      leave();
    }
  }
  ~RealGroup() { leave(); }
  RealGroup(const RealGroup&) = delete;
  RealGroup& operator=(const RealGroup&) = delete;
  bool limited() const { return limited_; }

  static constexpr std::size_t kLimit = std::size_t{300} << 20;

 private:
  static bool enter(const fs::path& group) {
    std::ofstream processes(group / "cgroup.procs");
    processes << getpid() << std::flush;
    return processes.good();
  }
  void leave() {
    if (own_.empty()) return;
    (void)enter(before_);
    ::rmdir(own_.c_str());
    own_.clear();
  }

  fs::path before_, own_;
  bool limited_ = false;
};

TEST(RealHostMemoryTest, IsNoMoreThanARealGroupAllows) {
  const std::size_t before = available_host_memory();
  EXPECT_GT(before, 0u);
  {
    const RealGroup group;
    if (!group.limited()) GTEST_SKIP() << "no control group can be made here";
    EXPECT_LE(available_host_memory(), RealGroup::kLimit);
    EXPECT_GT(available_host_memory(), RealGroup::kLimit / 2);
  }
  EXPECT_GT(available_host_memory(), RealGroup::kLimit);
}

}  // namespace
}  // namespace roundhouse
