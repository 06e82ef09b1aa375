// Every block of every recipe, and what is made of a recipe as soon as its last block is done.
#pragma once

#include <map>
#include <string>

#include "pipeline/job.h"
#include "pipeline/schedule/recipe_failure.h"
#include "pipeline/steps/evaluate_step.h"

namespace roundhouse {

// Why recipes cannot be made, by name: those that are not gone on with.
using Failures = std::map<std::string, RecipeFailure>;

// Collective over the world. Makes the blocks that are missing; exports and measures recipes that become finished before the last
// one does. What the last ones need is left to the caller. False if it stopped because it was asked to.
bool quantize(Job& job, RunEvaluations& evaluations, Failures& failures);

}  // namespace roundhouse
