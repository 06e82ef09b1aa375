#include "pipeline/watch/whereabouts.h"

#include <algorithm>

#include "comm/tree_sum.h"
#include "model/block/model_units.h"

namespace roundhouse {
namespace {

int blocks_of(const RecipeProgress& recipe) {
  return static_cast<int>(recipe.done.size()) - unit_count(0, recipe.include);
}

// What a stage has not done of a recipe.
struct Left {
  const RecipeProgress* recipe;
  int block;   // the first
  bool waits;  // see StageProgress
};

// In the order in which the stage does it, or would.
std::vector<Left> left_of(const std::vector<RecipeProgress>& recipes, int stage, int pipeline,
                          int lanes) {
  std::vector<Left> left;
  for (const RecipeProgress& recipe : recipes) {
    const bool by_all = recipe.lane < 0 || lanes == 1;
    if (!by_all && recipe.lane != stage / pipeline) continue;
    const int blocks = blocks_of(recipe);
    const int stages = by_all ? lanes * pipeline : pipeline;
    PartRange own = parts_of_rank(blocks, stage % stages, stages);
    if (own.end == blocks) own.end = static_cast<int>(recipe.done.size());
    const auto begin = recipe.done.begin() + own.begin, end = recipe.done.begin() + own.end;
    const auto missing = std::find(begin, end, false);
    if (recipe.failed || missing == end) continue;
    const Left now{
        .recipe = &recipe,
        .block = static_cast<int>(missing - recipe.done.begin()),
        .waits = recipe.in_order && std::find(recipe.done.begin(), begin, false) != begin};
    // Behind those of its wave that are no further.
    const auto ours = [&](const Left& other) {
      return recipe.wave >= 0 && other.recipe->wave == recipe.wave;
    };
    const auto first = std::ranges::find_if(left, ours);
    left.insert(
        std::find_if(first, left.end(),
                     [&](const Left& other) { return !ours(other) || other.block > now.block; }),
        now);
  }
  return left;
}

StageProgress progress_of(const std::vector<Left>& left) {
  StageProgress progress;
  if (left.empty()) return progress;
  progress.recipe = left[0].recipe->name;
  progress.block = left[0].block;
  progress.unit = unit_name(left[0].block, blocks_of(*left[0].recipe), left[0].recipe->include);
  progress.waits = left[0].waits;
  if (left.size() > 1) progress.next = left[1].recipe->name;
  return progress;
}

}  // namespace

std::vector<StageProgress> whereabouts(const std::vector<RecipeProgress>& recipes, int pipeline,
                                       int lanes) {
  std::vector<StageProgress> all;
  for (int stage = 0; stage < lanes * pipeline; ++stage)
    all.push_back(progress_of(left_of(recipes, stage, pipeline, lanes)));
  return all;
}

}  // namespace roundhouse
