// What is left to do, for the estimate of the time that it takes.
#pragma once

#include <vector>

#include <nlohmann/json.hpp>

#include "pipeline/job.h"
#include "pipeline/plan/cost_model.h"
#include "pipeline/schedule/schedule.h"
#include "pipeline/steps/evaluate_step.h"

namespace roundhouse {

// For TimeLeft: of recipes that are not finished, and of the original. The same on all ranks. `states`: of the config's recipes;
// `costs`: of the job on its mesh.
nlohmann::json plan_work(const Job& job, const CostModel& costs,
                         const std::vector<RecipeState>& states, const RunEvaluations& evaluations);

}  // namespace roundhouse
