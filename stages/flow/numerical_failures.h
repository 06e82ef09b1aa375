// What a rank finds impossible in its part of a common work becomes what all ranks find, before any of them waits for its result.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "comm/communicator.h"

namespace roundhouse {

// Runs `work`; an Error of it says `place` first, and stays of its kind. Who is in use, or which node is bad, has no place in the model.
// Methods name linear and rows in this way, and the schedule recipe and block.
void with_place_named(const std::string& place, const std::function<void()>& work);

class NumericalFailures {
 public:
  // Does nothing once something has failed here. `place`: where in the whole work this piece is; a rank's pieces come in ascending order.
  // A NumericalError is kept for agree().
  void run(std::int64_t place, const std::function<void()>& work);
  // Collective: throws UnquantizableError, on all ranks, if any has kept a failure: that of the first place, which does not depend on
  // how many ranks there are.
  void agree(Communicator& group) const;

 private:
  std::int64_t place_ = -1;  // -1: nothing failed
  std::string what_;
};

}  // namespace roundhouse
