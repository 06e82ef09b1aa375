// What is made of finished recipes: exports and figures.
#pragma once

#include <string>
#include <vector>

#include "pipeline/job.h"
#include "pipeline/steps/evaluate_step.h"

namespace roundhouse {

// Of recipe names, or kOriginal. Collective over `group`: the world, or the team of a pipeline stage while others quantize,
// which needs evaluations that are read. Skips what is already there and right. False if it stopped because it was asked to.
bool make_products(Job& job, Communicator& group, const std::vector<std::string>& names,
                   RunEvaluations& evaluations);

}  // namespace roundhouse
