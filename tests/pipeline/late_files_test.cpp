// Two ranks, of which one sees what the other has renamed only later: it waits, as long as is worth it, and then says for what.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/exit_code.h"
#include "tests/base/temporary_folder.h"
#include "tests/pipeline/program.h"

namespace roundhouse {
namespace {

class LateFilesTest : public testing::Test {
 protected:
  // A whole run, whose evaluation has a batch for each rank; rank 1 sees blocks so late.
  Outcome quantize(double seconds) const {
    const std::string config = at("config.yaml");
    write_text_atomically(config, "model: tests/data/tiny-world\nrun: " + at("run") +
                                      "\nrecipes: [{method: rtn}]\ndevice: cpu\nthreads: 1\n"
                                      "evaluate: {original: false, perplexity: [{name: test, text: "
                                      "tests/data/tiny-world/test.txt, window: 512, limit: 8}]}\n");
    return run_program(folder_.path(), "run " + config,
                       "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "
                       "OMPI_MCA_btl_vader_single_copy_mechanism=none " ROUNDHOUSE_MPIEXEC
                       " --oversubscribe --bind-to none -n 2 env LATE_FILES='1 " +
                           std::to_string(seconds) + " block- " + at("hidden") +
                           "' LD_PRELOAD=" ROUNDHOUSE_LATE_FILES);
  }
  std::string at(const std::string& name) const { return (folder_.path() / name).string(); }
  bool was_hidden() const { return std::filesystem::exists(at("hidden")); }

  TemporaryFolder folder_;
};

TEST_F(LateFilesTest, ARankWaitsForWhatAnotherHasWritten) {
  const Outcome outcome = quantize(5);
  EXPECT_EQ(outcome.exit_code, kExitDone) << outcome.err;
  EXPECT_TRUE(was_hidden()) << "nothing had to be waited for";
}

// Takes the two minutes that a rank waits.
TEST_F(LateFilesTest, WhatIsNeverSeenIsNamedWithTheTimeWaited) {
  const Outcome outcome = quantize(1e9);
  EXPECT_EQ(outcome.exit_code, 1) << outcome.err;
  EXPECT_TRUE(was_hidden());
  EXPECT_THAT(outcome.err,
              testing::ContainsRegex(
                  "cannot see .*/run/recipes/rtn-w4g128/block-000[0-9]\\.h5 on .*: another rank "
                  "wrote it with [0-9]+ bytes, and after 120 s it is not in its folder here"));
}

}  // namespace
}  // namespace roundhouse
