// What recipes make of the gradients of the model: blocks, or statistics that their methods decide by. One walk
// (gradient_schedule.h) serves all recipes of a run that ask for as many samples of the same length.
//
//   recipes/RECIPE/block-0007                    see schedule.h
//   recipes/RECIPE/statistics/block-0007         what Method::statistics() made of a block's gradients
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "pipeline/schedule/schedule.h"

namespace roundhouse {

// Which recipes still wait for gradients of which samples and length.
using GradientUsers = std::map<std::pair<int, int>, std::vector<std::size_t>>;
GradientUsers gradient_users(const std::vector<Recipe>& recipes,
                             const std::vector<RecipeState>& states);
std::string gradient_folder(int samples, int length);  // "gradients/100x512", of a walk's snapshots

// Collective: all of it that is missing; then the decisions of those that wait for statistics. States are brought up to date. False if
// it stopped because it was asked to. Snapshots of walks that nobody waits for are removed. To the journal, besides what a walk says:
// {"event": "statistics", "recipe", "block", "seconds", "ranks", "statistics"}.
bool make_from_gradients(Schedule& schedule, const std::vector<Recipe>& recipes,
                         std::vector<RecipeState>& states);

}  // namespace roundhouse
