#include "stages/flow/numerical_failures.h"

#include <gtest/gtest.h>

#include "base/numerical_error.h"
#include "tests/comm/mpi_world.h"

namespace roundhouse {
namespace {

// Pieces are dealt out in turns; those from `first` on fail.
std::string agreed(Communicator& world, int pieces, int first) {
  NumericalFailures failures;
  for (int piece = world.rank(); piece < pieces; piece += world.size()) {
    failures.run(piece, [&] {
      if (piece >= first) throw NumericalError("piece " + std::to_string(piece));
    });
  }
  try {
    failures.agree(world);
  } catch (const UnquantizableError& error) {
    return error.what();
  }
  return "none";
}

TEST(NumericalFailuresTest, AllRanksHaveTheFirst) {
  EXPECT_EQ(agreed(test_world(), 12, 12), "none");
  for (int first = 0; first < 12; ++first)
    EXPECT_EQ(agreed(test_world(), 12, first), "piece " + std::to_string(first));
}

TEST(NumericalFailuresTest, OtherErrorsAreNotKept) {
  NumericalFailures failures;
  EXPECT_THROW(failures.run(0, [] { throw Error("disk full"); }), Error);
  EXPECT_NO_THROW(failures.agree(test_world()));
}

}  // namespace
}  // namespace roundhouse
