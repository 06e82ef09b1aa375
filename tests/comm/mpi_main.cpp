// main() of the tests that run under mpirun: every rank runs every test; rank 0 prints the
// protocol.
//   EXPECT_*  may fail on some ranks only: the run goes on, and all ranks exit with the worst
//   result. ASSERT_*, or an exception, leaves a test early while the others wait for this rank: it
//   ends the job.
#include <gtest/gtest.h>

#include <cstdio>
#include <exception>
#include <string>

#include "tests/comm/mpi_world.h"

namespace roundhouse {
namespace {

Communicator* world = nullptr;
LaunchSession* session = nullptr;

class RankReporter final : public testing::EmptyTestEventListener {
  void OnTestPartResult(const testing::TestPartResult& part) override {
    if (!part.failed()) return;
    const std::string what = std::string(part.file_name() ? part.file_name() : "exception") + ":" +
                             std::to_string(part.line_number()) + ": " + part.message();
    if (part.fatally_failed()) abort_job(1, what);
    std::fprintf(stderr, "[rank %d] %s\n", world->rank(), what.c_str());
  }
};

int run_all_tests(int argc, char** argv) {
  LaunchSession this_session(argc, argv);
  session = &this_session;
  testing::InitGoogleTest(&argc, argv);
  const auto all_ranks = this_session.world();
  world = all_ranks.get();

  auto& listeners = testing::UnitTest::GetInstance()->listeners();
  if (world->rank() != 0) delete listeners.Release(listeners.default_result_printer());
  if (world->size() > 1) listeners.Append(new RankReporter);
  return static_cast<int>(world->all_reduce_max(RUN_ALL_TESTS()));
}

}  // namespace

Communicator& test_world() { return *world; }
LaunchSession& test_session() { return *session; }

}  // namespace roundhouse

int main(int argc, char** argv) {
  try {
    return roundhouse::run_all_tests(argc, argv);
  } catch (const std::exception& e) {
    roundhouse::abort_job(1, e.what());
  }
}
