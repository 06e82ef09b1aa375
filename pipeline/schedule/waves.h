// Recipes that go through the model together, block by block: a wave. Of a block its original weights are loaded once and the
// full-precision stream goes through once; then each recipe's unit is made.
//
//   recipe by recipe    A0 A1 A2 A3  B0 B1 B2 B3  C0 C1 C2 C3
//   as a wave           A0 B0 C0  A1 B1 C1  A2 B2 C2  A3 B3 C3
//
// The order of units changes no bit. What a wave costs is the memory of all of its recipes' streams, and that none of them is finished
// before the others nearly are.
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include "comm/tree_sum.h"
#include "pipeline/schedule/recipe_state.h"
#include "stages/quantize/recipe.h"

namespace roundhouse {

using Wave = std::vector<std::size_t>;  // numbers of recipes

// A pure function of its arguments. Recipes that are to be walked (those whose blocks are not made of gradients), in their order: each
// joins the last wave of its lane and calibration set, or of those without streams, unless that has `most` already, or `fits` says that
// the memory does not hold both. Within a wave recipes of one method are neighbours. `lane_of`: by recipe; empty: there are no lanes.
std::vector<Wave> form_waves(const std::vector<Recipe>& recipes,
                             const std::vector<RecipeState>& states,
                             const std::vector<int>& lane_of, int most,
                             const std::function<bool(const Wave&)>& fits);

// Those of `numbers` as the waves have them; one that no wave has goes alone.
std::vector<Wave> waves_of(const std::vector<std::size_t>& numbers, const std::vector<Wave>& waves);

// One recipe's way through the blocks `own` of a stage.
struct Way {
  // Its blocks of the stage, from the first that it goes through to the last. Without streams it goes only through those that are missing.
  int begin = 0, end = 0;
  bool arrives = false;   // at `begin`, from the stage before
  bool goes_on = false;   // to the stage behind
  bool in_order = false;  // it has streams
  bool original = false;  // the full-precision stream among them
  bool finishes_at(int block) const { return in_order && !goes_on && block + 1 == end; }
  // Whether the recipe is at work on a block.
  bool through(int block, const RecipeState& state) const {
    return begin <= block && block < end && (in_order || !state.done[block]);
  }
};
Way way_through(const Recipe& recipe, const RecipeState& state, PartRange own);

// What a stage has of the units of these recipes: its blocks, and, if it is the last, what any of them includes outside the blocks.
PartRange own_units(const std::vector<Recipe>& recipes, const Wave& wave, PartRange own_blocks,
                    int blocks);

}  // namespace roundhouse
