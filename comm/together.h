// What may fail on one rank alone, done so that all ranks fail: else the others would wait for it.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "comm/communicator.h"

namespace roundhouse {

// How work ended on one rank: the kind of what it threw (base/error.h), and its text.
struct Outcome {
  enum class Kind : char { kDone, kError, kInputError, kInUse, kBadNode };
  Kind kind = Kind::kDone;
  std::string what;
};

// Collective. Runs `work`, which must not communicate; returns how it ended, by rank.
std::vector<Outcome> outcomes_of(Communicator& world, const std::function<void()>& work);
[[noreturn]] void throw_outcome(const Outcome& outcome);  // Precondition: not done

// Collective. Runs `work`; if it fails on any rank, rank 0 tidies up, unless another job has the run, and all throw what the first of
// those did.
void together(Communicator& world, const std::function<void()>& work,
              const std::function<void()>& tidy_up = {});

// Collective. Rank 0's text, on every rank.
std::string share(Communicator& world, std::string text);

}  // namespace roundhouse
