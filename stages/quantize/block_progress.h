// What a method has made so far of the block at hand, where one block takes many minutes: kept in the run's store, so that a resume
// goes on in the middle of the block.
//
// Progress is cut into parts, whose names follow from the problem and not from the ranks. A step that was written with all of its parts
// is a point from which the method goes on with the same bits, on a team of any size.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "stages/store/run_store.h"

namespace roundhouse {

class BlockProgress {
 public:
  virtual ~BlockProgress() = default;

  // Collective over the team: the newest step (1 or more) of which all of these parts are there and whole; nothing: begin with the first.
  virtual std::optional<int> newest(const std::vector<std::string>& parts) = 0;
  // A part of that step. Throws Error if it has gone.
  virtual Record load(int step, const std::string& part) = 0;

  // Collective over the team, the same answer to all: is it time to write progress, which is so many bytes on this rank?
  virtual bool due(double bytes) = 0;
  // Collective over the team: each rank its own parts, one at a time, as `make` makes them. Then the step before goes.
  virtual void write(int step, const std::vector<std::string>& mine,
                     const std::function<Record(std::size_t part)>& make) = 0;
};

}  // namespace roundhouse
