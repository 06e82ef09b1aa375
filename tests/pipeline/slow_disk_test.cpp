// Ranks that have nothing to do while another works on a slow disk for longer than the watchdog's patience.
#include <gtest/gtest.h>

#include "base/exit_code.h"
#include "tests/base/temporary_folder.h"
#include "tests/pipeline/program.h"

namespace roundhouse {
namespace {

// Three ranks, one file to export, one window to measure: two ranks have neither. Each opening of one of six blocks takes a second.
TEST(SlowDiskTest, RanksWithoutAFileOrAWindowAreNotCalledStuck) {
  const TemporaryFolder folder;
  const std::string run = (folder.path() / "run").string();
  const std::string config = (folder.path() / "config.yaml").string();
  write_text_atomically(config,
                        "model: tests/data/tiny-world\nrun: " + run +
                            "\nrecipes: [{method: rtn}]\ndevice: cpu\nthreads: 1\n"
                            "limits: {stall_seconds: 5}\nexport: {formats: [compressed-tensors]}\n"
                            "evaluate: {original: false, perplexity: [{name: test, text: "
                            "tests/data/tiny-world/test.txt, window: 64, limit: 1}]}\n");
  const Outcome outcome =
      run_program(folder.path(), "run " + config,
                  "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "
                  "OMPI_MCA_btl_vader_single_copy_mechanism=none " ROUNDHOUSE_MPIEXEC
                  " --oversubscribe --bind-to none -n 3 env FAIL_CALLS='open 0 block-0 -1' "
                  "LD_PRELOAD=" ROUNDHOUSE_FAILING_CALLS);
  EXPECT_EQ(outcome.exit_code, kExitDone) << outcome.err;
}

}  // namespace
}  // namespace roundhouse
