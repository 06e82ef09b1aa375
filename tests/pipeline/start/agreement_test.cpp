#include "pipeline/start/agreement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/process.h"
#include "pipeline/run/lease.h"
#include "tests/base/temporary_folder.h"
#include "tests/comm/mpi_world.h"

namespace roundhouse {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

std::string bad_node(const std::function<void()>& action) {
  try {
    action();
  } catch (const BadNodeError& error) {
    return error.what();
  }
  return "no BadNodeError";
}

std::string node_of(int rank) {
  return "bad node: " + host_name() + " (rank " + std::to_string(rank) + "): ";
}

TEST(AgreementTest, WhatFailsAlikeOnAllRanksIsNoNodesFault) {
  EXPECT_NO_THROW(agree(test_world(), [] {}));
  EXPECT_THROW(agree(test_world(), [] { throw InputError("config.yaml: no such file"); }),
               InputError);
  EXPECT_THROW(agree(test_world(), [] { throw InUseError("in use"); }), InUseError);
}

TEST(AgreementTest, WhatFailsOnOneRankNamesItsNodeOnAll) {
  if (test_world().size() == 1) GTEST_SKIP() << "one rank is all";
  for (int culprit = 0; culprit < test_world().size(); ++culprit) {
    const auto work = [&] {
      if (test_world().rank() == culprit) throw InputError("/models is not there");
    };
    EXPECT_EQ(bad_node([&] { agree(test_world(), work); }),
              node_of(culprit) + "/models is not there");
  }
}

TEST(AgreementTest, TheOneThatDiffersFromMostIsNamed) {
  EXPECT_NO_THROW(compare_facts(test_world(), {{"program", "1"}, {"model", "m"}}));
  if (test_world().size() < 3) GTEST_SKIP() << "two ranks have no majority";
  for (int culprit = 0; culprit < test_world().size(); ++culprit) {
    const bool me = test_world().rank() == culprit;
    EXPECT_EQ(bad_node([&] {
                compare_facts(test_world(), {{"program", me ? "2" : "1"}, {"model", "m"}});
              }),
              node_of(culprit) + "program is 2, elsewhere 1");
  }
}

TEST(AgreementTest, OfTwoTheFirstIsRight) {
  if (test_world().size() != 2) GTEST_SKIP() << "for two ranks";
  const std::string mine = std::to_string(test_world().rank());
  EXPECT_EQ(bad_node([&] {
              compare_facts(test_world(), {{"program", mine}});
            }),
            node_of(1) + "program is 1, elsewhere 0");
}

TEST(AgreementTest, OneLineSaysWhatWasFound) {
  const std::string line = describe_agreement(test_world(), {{"model", "0f"}, {"program", "1"}});
  const int ranks = test_world().size();
  EXPECT_THAT(line, StartsWith(std::to_string(ranks) + (ranks == 1 ? " rank" : " ranks") +
                               " on 1 node: model 0f; program 1; free memory "));
  EXPECT_THAT(line, HasSubstr(", open files "));
}

TEST(AgreementTest, TheRunsFolderIsKnownByItsLease) {
  const TemporaryFolder folder;  // each rank's own
  const Lease lease(folder.path());
  EXPECT_NO_THROW(await_lease(folder.path(), lease.token(), 0));
  const TemporaryFolder other;
  EXPECT_THROW(await_lease(other.path(), lease.token(), 0.05), Error);
  EXPECT_THROW(await_lease(other.path() / "none", lease.token(), 0.05), Error);
}

}  // namespace
}  // namespace roundhouse
