// What a plan has to say beside its figures: one line each, with the setting that would help.
#pragma once

#include <nlohmann/json.hpp>

#include "pipeline/plan/mesh_choice.h"
#include "pipeline/plan/simulated_job.h"

namespace roundhouse {

// What does not fit (memory, scratch, disk, positions, the time limit), and what would make it fit. An array of lines.
nlohmann::json problems_of(const PlanRequest& request, const SimulatedJob& of);

// What would be faster. `best`: among the meshes of as many ranks.
nlohmann::json hints_of(const PlanRequest& request, const SimulatedJob& of, const MeshChoice& best);

}  // namespace roundhouse
