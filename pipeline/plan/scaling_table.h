// How a job scales: the tables of docs/scaling.md.
#pragma once

#include <string>

#include "pipeline/plan/simulated_job.h"

namespace roundhouse {

// Of one recipe of each method, and of all recipes: hours by ranks, and where more ranks help less. Markdown.
std::string scaling_text(const PlanRequest& request);

}  // namespace roundhouse
