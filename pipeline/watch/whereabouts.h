// Who is at what, and what comes next: of every stage of a pipeline, by what is committed.
#pragma once

#include <string>
#include <vector>

namespace roundhouse {

struct RecipeProgress {
  std::string name;
  bool in_order = false;   // a block begins when those before it are done
  bool failed = false;     // it is not gone on with
  int lane = -1;           // that takes it; -1: all do
  int wave = -1;           // recipes of one wave go block by block together; -1: it goes alone
  std::vector<bool> done;  // by block
  std::vector<std::string> include = {};  // not empty: the last of `done` is outside the blocks
};

struct StageProgress {
  std::string recipe;  // empty: this stage has done its part of all
  int block = 0;       // that it makes, or that it waits for
  std::string unit;    // what that is called (unit_name())
  bool waits = false;  // for the stage before: blocks before its own are missing
  std::string next;    // the recipe after; empty: none
};

// By stage, lane after lane. Recipes are gone through in this order, those of a wave when the first of them is due; the stages of a lane, or all of them, share the blocks as a mesh
// does.
std::vector<StageProgress> whereabouts(const std::vector<RecipeProgress>& recipes, int pipeline,
                                       int lanes = 1);

}  // namespace roundhouse
