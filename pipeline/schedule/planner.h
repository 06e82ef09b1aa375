// The schedule as data: what each stage of the pipeline does, in order, as a pure function of recipes, their states and the mesh.
// What quantize_all() walks (schedule.h; a test holds the two side by side), and what `roundhouse plan` simulates.
#pragma once

#include <compare>
#include <cstddef>
#include <vector>

#include "pipeline/schedule/mesh.h"
#include "pipeline/schedule/recipe_state.h"
#include "pipeline/schedule/waves.h"
#include "stages/quantize/recipe.h"

namespace roundhouse {

struct Step {
  enum class Kind {
    // Of a walk through gradients:
    kForward,     // a block
    kBackward,    // a block, and the sums of its gradients
    kStatistics,  // of a recipe's block, from the sums
    // Of a recipe for the whole model:
    kDecide,
    // Of a recipe's streams:
    kEmbed,
    kLoad,           // the snapshot before the block
    kReceive,        // from the stage before
    kReplay,         // the block, which is done, is run forward
    kSnapshotIfDue,  // of what comes before the block
    kHandOver,       // to the next stage
    // Of a recipe's block, in either:
    kMake
  };
  Kind kind;
  std::size_t recipe;  // of kForward and kBackward: the first of those that wait for the gradients
  int block;           // what kHandOver and kReceive carry comes before it
  // Of a wave of recipes; what they share is done at one of its steps:
  int wave = -1;       // number, on this stage
  bool loads = false;  // the block's original weights are read
  bool original =
      false;  // the full-precision stream goes along: through the block, to and from a snapshot or a stage
  bool gathered = false;  // kMake: what the method gathers (Needs::gathers) is there

  auto operator<=>(const Step&) const = default;
};

// By stage, lane after lane, what all ranks of its team do. Nothing is assumed of gradients but what the states say. `lane_of`: by
// recipe, deal_recipes()'s; looked at where there is more than one lane. `waves`: form_waves()'s.
std::vector<std::vector<Step>> plan_steps(const std::vector<Recipe>& recipes,
                                          std::vector<RecipeState> states, MeshShape mesh,
                                          int blocks, const std::vector<int>& lane_of = {},
                                          const std::vector<Wave>& waves = {});

// Which lane takes which recipe. `seconds`: what is left to do of each; 0 where that is not done in lanes. The longest first, each to
// the lane that has least so far.
std::vector<int> deal_recipes(const std::vector<double>& seconds, int lanes);

// Nothing is done yet.
std::vector<RecipeState> fresh_states(const std::vector<Recipe>& recipes, int blocks);

}  // namespace roundhouse
