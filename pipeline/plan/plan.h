// `roundhouse plan`: what a job would do and take, reckoned before it is queued.
#pragma once

#include <vector>

#include <nlohmann/json.hpp>

#include "pipeline/plan/simulated_job.h"

namespace roundhouse {

constexpr int kPlanColumns = 60;  // of "stages": how busy each is in so many equal parts of the job

// Everything of the plan, as docs/scaling.md lists it. Throws InputError where the ranks fit no mesh.
nlohmann::json make_plan(const PlanRequest& request, int ranks, std::vector<RecipeState> states);

}  // namespace roundhouse
