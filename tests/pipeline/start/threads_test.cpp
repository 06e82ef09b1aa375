#include "pipeline/start/threads.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

namespace roundhouse {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

std::vector<int> range(int begin, int end) {
  std::vector<int> numbers(static_cast<std::size_t>(end - begin));
  std::iota(numbers.begin(), numbers.end(), begin);
  return numbers;
}

NodeBinding unbound(std::size_t ranks, int processors) {
  return {.ranks = std::vector(ranks, range(0, processors)),
          .launcher = range(0, processors),
          .core_of = {}};
}

std::string only_warning(const NodeBinding& binding) {
  const std::vector<std::string> warnings = plan_threads(binding).warnings;
  EXPECT_EQ(warnings.size(), 1u);
  return warnings.empty() ? "" : warnings[0];
}

TEST(ThreadsTest, RanksThatAreNotBoundShareTheNode) {
  EXPECT_THAT(plan_threads(unbound(1, 8)).threads, ElementsAre(8));
  EXPECT_THAT(plan_threads(unbound(2, 8)).threads, ElementsAre(4, 4));
  EXPECT_THAT(plan_threads(unbound(3, 3)).threads, ElementsAre(1, 1, 1));
  EXPECT_THAT(plan_threads(unbound(3, 8)).threads, ElementsAre(2, 2, 2));
  EXPECT_THAT(plan_threads(unbound(3, 8)).warnings, IsEmpty());
  EXPECT_FALSE(plan_threads(unbound(1, 8)).unbind);
  EXPECT_EQ(plan_threads(unbound(2, 8)).summary, "2 ranks x 4 threads on 8 processors (8 cores)");
}

TEST(ThreadsTest, ARankOfItsOwnProcessorsTakesThemAll) {
  const NodeBinding sockets{
      .ranks = {range(0, 32), range(32, 64)}, .launcher = range(0, 64), .core_of = {}};
  EXPECT_THAT(plan_threads(sockets).threads, ElementsAre(32, 32));
  EXPECT_THAT(plan_threads(sockets).warnings, IsEmpty());
}

// Each took all of it: four ranks with 32 threads each on 32 processors.
TEST(ThreadsTest, RanksThatShareABindingShareItsProcessors) {
  NodeBinding binding{.ranks = std::vector(4, range(0, 32)), .launcher = {}, .core_of = {}};
  EXPECT_THAT(plan_threads(binding).threads, ElementsAre(8, 8, 8, 8));
  EXPECT_THAT(plan_threads(binding).warnings, IsEmpty())
      << "of the rest of the node nothing is known";
  binding.launcher = range(0, 64);
  EXPECT_THAT(only_warning(binding),
              HasSubstr("which several share, and 32 of 64 processors stay"));
  EXPECT_THAT(only_warning(binding), HasSubstr("--bind-to none"));

  const NodeBinding by_turns{.ranks = {range(0, 4), range(4, 8), range(0, 4), range(4, 8)},
                             .launcher = range(0, 8),
                             .core_of = {}};
  EXPECT_THAT(plan_threads(by_turns).threads, ElementsAre(2, 2, 2, 2));
  const NodeBinding in_part{.ranks = {range(0, 4), range(2, 8)}, .launcher = {}, .core_of = {}};
  EXPECT_THAT(plan_threads(in_part).threads, ElementsAre(3, 5));
  EXPECT_EQ(plan_threads(in_part).summary, "2 ranks x 3 to 5 threads on 8 processors (8 cores)");
}

// As mpirun does with one rank unless told otherwise.
TEST(ThreadsTest, OneRankBoundToOneCoreIsUnbound) {
  NodeBinding binding{
      .ranks = {{3, 7}}, .launcher = range(0, 8), .core_of = {{4, 0}, {5, 1}, {6, 2}, {7, 3}}};
  EXPECT_TRUE(plan_threads(binding).unbind);
  EXPECT_THAT(plan_threads(binding).threads, ElementsAre(8));
  EXPECT_EQ(plan_threads(binding).summary, "1 rank x 8 threads on 8 processors (4 cores)");
  binding.ranks = {{2, 3}};
  EXPECT_FALSE(plan_threads(binding).unbind) << "somebody chose these two cores";
  EXPECT_THAT(only_warning(binding), HasSubstr("6 of 8 processors stay idle"));
  binding.launcher = {2, 3};
  EXPECT_THAT(plan_threads(binding).warnings, IsEmpty());
}

TEST(ThreadsTest, RanksBoundToACoreEachWhileOthersIdleAreWarned) {
  const NodeBinding binding{.ranks = {{0}, {1}}, .launcher = range(0, 64), .core_of = {}};
  EXPECT_THAT(plan_threads(binding).threads, ElementsAre(1, 1));
  EXPECT_THAT(only_warning(binding),
              HasSubstr("each rank is bound to one core, and 62 of 64 processors stay idle"));
  const NodeBinding all{.ranks = {{0}, {1}}, .launcher = {0, 1}, .core_of = {}};
  EXPECT_THAT(plan_threads(all).warnings, IsEmpty());
}

TEST(ThreadsTest, MoreRanksThanProcessorsAreWarned) {
  EXPECT_THAT(plan_threads(unbound(3, 2)).threads, ElementsAre(1, 1, 1));
  EXPECT_THAT(only_warning(unbound(3, 2)), HasSubstr("3 ranks share 2 processors"));
}

TEST(ThreadsTest, WhereNothingCanBeFoundOutThereIsOneThread) {
  const NodeBinding unknown{.ranks = {{}}, .launcher = {}, .core_of = {}};
  EXPECT_THAT(plan_threads(unknown).threads, ElementsAre(1));
  EXPECT_THAT(plan_threads(unknown).warnings, IsEmpty());
}

}  // namespace
}  // namespace roundhouse
