// Every block of every recipe, and what is made of a recipe as soon as its last block is done.
#pragma once

#include "pipeline/job.h"
#include "pipeline/steps/evaluate_step.h"

namespace roundhouse {

// Collective over the world. Makes the blocks that are missing; exports and measures recipes that become finished before the last
// one does. What the last ones need is left to the caller. False if it stopped because it was asked to.
bool quantize(Job& job, RunEvaluations& evaluations);

}  // namespace roundhouse
