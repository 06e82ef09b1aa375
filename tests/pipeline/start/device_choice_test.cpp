// On emulated GPUs (tests/cuda_emulation); EMULATED_GPUS names those that this process sees.
#include "pipeline/start/device_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>

#include "base/error.h"
#include "tests/comm/mpi_world.h"

namespace roundhouse {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

TEST(ChooseGpusTest, RanksThatSeeTheSameTakeThemInTurn) {
  using Four = std::vector<std::string>;
  const Four node{"a", "b", "c", "d"};
  EXPECT_THAT(choose_gpus({node, node, node, node}), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(choose_gpus({node}), ElementsAre(0));
  const Four two{"a", "b"};
  EXPECT_THAT(choose_gpus({two, two, two, two, two}), ElementsAre(0, 1, 0, 1, 0));
  EXPECT_TRUE(choose_gpus({}).empty());
}

TEST(ChooseGpusTest, OneVisibleGpuEachMayBeManyOrOne) {
  EXPECT_THAT(choose_gpus({{"a"}, {"b"}, {"c"}}), ElementsAre(0, 0, 0));
  EXPECT_THAT(choose_gpus({{"a"}, {"a"}, {"a"}}), ElementsAre(0, 0, 0));
}

// Two nodes, whose ranks stand one after another or in turns.
TEST(ChooseGpusTest, NodesDoNotMeet) {
  const std::vector<std::string> x{"x0", "x1"}, y{"y0", "y1"};
  EXPECT_THAT(choose_gpus({x, x, y, y}), ElementsAre(0, 1, 0, 1));
  EXPECT_THAT(choose_gpus({x, y, x, y}), ElementsAre(0, 0, 1, 1));
}

// CUDA_VISIBLE_DEVICES that begins with another GPU for each rank is a wish.
TEST(ChooseGpusTest, ARanksOwnOrderDecidesBetweenEquals) {
  EXPECT_THAT(choose_gpus({{"a", "b"}, {"b", "a"}}), ElementsAre(0, 0));
  EXPECT_THAT(choose_gpus({{"b", "a"}, {"b", "a"}}), ElementsAre(0, 1));
}

TEST(ChooseGpusTest, ARankMovesOnForOneThatSeesLess) {
  EXPECT_THAT(choose_gpus({{"a", "b"}, {"a"}}), ElementsAre(1, 0));
  EXPECT_THAT(choose_gpus({{"a", "b"}, {"b", "c"}, {"a"}, {"b"}}), ElementsAre(1, 1, 0, 0));
  EXPECT_THAT(choose_gpus({{"a", "b"}, {"a", "b"}, {"a"}}), ElementsAre(0, 1, 0));
  // In a chain of two: the first two move.
  EXPECT_THAT(choose_gpus({{"a", "b"}, {"b", "c"}, {"a"}}), ElementsAre(1, 1, 0));
}

class ChooseDeviceTest : public testing::Test {
 protected:
  ~ChooseDeviceTest() override { ::unsetenv("EMULATED_GPUS"); }
  int rank() const { return test_world().rank(); }
  int size() const { return test_world().size(); }
  // What this rank sees, then all of them choose.
  DeviceChoice choose(const std::string& visible, const std::string& wish = "auto") {
    ::setenv("EMULATED_GPUS", visible.c_str(), 1);
    return choose_device(wish, size(), test_world());
  }
  std::string failure(const std::string& visible, const std::string& wish) {
    try {
      (void)choose(visible, wish);
      return "no error";
    } catch (const std::exception& e) {
      return e.what();
    }
  }
  static std::string name(int number) { return "gpu-" + std::to_string(number); }
};

TEST_F(ChooseDeviceTest, AllGpusVisibleToAllRanks) {
  const DeviceChoice choice = choose("gpu-0,gpu-1,gpu-2,gpu-3");
  EXPECT_EQ(choice.backend, "cuda");
  EXPECT_EQ(choice.index, rank());
  EXPECT_EQ(choice.sharers, 1);
  EXPECT_EQ(choice.sharing, "");
  EXPECT_EQ(choice.ranks.size(), static_cast<std::size_t>(size()));
}

TEST_F(ChooseDeviceTest, OneGpuVisibleToEachRank) {
  const DeviceChoice choice = choose(name(rank()), "cuda");
  EXPECT_EQ(choice.index, 0);
  EXPECT_EQ(choice.sharers, 1);
  EXPECT_EQ(choice.sharing, "");
}

TEST_F(ChooseDeviceTest, RanksThatShareSaySoAndTakeTheirPartOfItsMemory) {
  const DeviceChoice choice = choose(name(0));
  EXPECT_EQ(choice.index, 0);
  EXPECT_EQ(choice.sharers, size());
  if (size() > 1) {
    EXPECT_THAT(choice.sharing, HasSubstr(std::to_string(size()) + " ranks share 1 GPU,"));
  }
  const auto alone = make_backend("cuda", {});
  const auto shared = make_backend("cuda", {.sharers = choice.sharers});
  const auto whole = static_cast<double>(alone->available_bytes());
  EXPECT_NEAR(static_cast<double>(shared->available_bytes()) * size() / whole, 1.0, 0.2);
  const std::string shared_by = "shared by " + std::to_string(size()) + " ranks";
  EXPECT_EQ(shared->description().ends_with(shared_by), size() > 1);
}

TEST_F(ChooseDeviceTest, MoreRanksThanGpusShareEvenly) {
  if (size() != 3) return;
  const DeviceChoice choice = choose("gpu-0,gpu-1");
  EXPECT_EQ(choice.index, rank() % 2);
  EXPECT_EQ(choice.sharers, rank() == 1 ? 1 : 2);
  EXPECT_THAT(choice.sharing, HasSubstr("3 ranks share 2 GPUs, up to 2 on one"));
}

TEST_F(ChooseDeviceTest, NoGpuAnywhereIsTheCpuOrAnError) {
  EXPECT_EQ(choose("").backend, "cpu");
  EXPECT_EQ(choose("").sharers, size());
  EXPECT_THROW((void)choose("", "cuda"), InputError);
  EXPECT_EQ(choose("gpu-0", "cpu").backend, "cpu");
}

TEST_F(ChooseDeviceTest, ARankWithoutAGpuAmongOthersIsAnErrorThatNamesItsNode) {
  if (size() == 1) return;
  char node[256] = "";
  ::gethostname(node, sizeof node - 1);
  for (const std::string wish : {"auto", "cuda"}) {
    const std::string what = failure(rank() == 1 ? "" : "gpu-0", wish);
    EXPECT_THAT(what, HasSubstr("bad node: " + std::string(node) + " (rank 1): device: " + wish));
    EXPECT_THAT(what, Not(HasSubstr("rank 0")));
  }
}

// Without MPI.
TEST_F(ChooseDeviceTest, OneProcessAlone) {
  ::setenv("EMULATED_GPUS", "gpu-7,gpu-8", 1);
  const DeviceChoice choice = choose_device("auto", 1, *make_local_communicator());
  EXPECT_EQ(choice.backend, "cuda");
  EXPECT_EQ(choice.index, 0);
  EXPECT_EQ(choice.sharers, 1);
}

}  // namespace
}  // namespace roundhouse
