#include "pipeline/watch/whereabouts.h"

#include <algorithm>

#include "comm/tree_sum.h"

namespace roundhouse {
namespace {

StageProgress progress_of(const std::vector<RecipeProgress>& recipes, int stage, int pipeline,
                          int lanes) {
  StageProgress progress;
  for (const RecipeProgress& recipe : recipes) {
    const bool by_all = recipe.lane < 0 || lanes == 1;
    if (!by_all && recipe.lane != stage / pipeline) continue;
    const auto blocks = static_cast<int>(recipe.done.size());
    const PartRange own = by_all ? parts_of_rank(blocks, stage, lanes * pipeline)
                                 : parts_of_rank(blocks, stage % pipeline, pipeline);
    const auto begin = recipe.done.begin() + own.begin, end = recipe.done.begin() + own.end;
    const auto missing = std::find(begin, end, false);
    if (recipe.failed || missing == end) continue;
    if (!progress.recipe.empty()) {
      progress.next = recipe.name;
      break;
    }
    progress.recipe = recipe.name;
    progress.block = static_cast<int>(missing - recipe.done.begin());
    progress.waits = recipe.in_order && std::find(recipe.done.begin(), begin, false) != begin;
  }
  return progress;
}

}  // namespace

std::vector<StageProgress> whereabouts(const std::vector<RecipeProgress>& recipes, int pipeline,
                                       int lanes) {
  std::vector<StageProgress> all;
  for (int stage = 0; stage < lanes * pipeline; ++stage)
    all.push_back(progress_of(recipes, stage, pipeline, lanes));
  return all;
}

}  // namespace roundhouse
