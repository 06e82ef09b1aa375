// Which mesh a job takes: the one that its configuration names, or else the one that the cost model finds fastest. No bit of a
// result depends on it.
#pragma once

#include <vector>

#include "pipeline/plan/simulated_job.h"

namespace roundhouse {

struct MeshChoice {
  MeshShape mesh;
  double seconds = 0;  // reckoned, for the whole job
};

// Of all meshes of so many ranks: among those whose ranks' memory holds what they need without scratch files (all, where none
// does), the fastest; of those within 1 % of it, the one of fewest stages.
MeshChoice fastest_mesh(const PlanRequest& request, int ranks,
                        const std::vector<RecipeState>& states);

// By `mesh:` of the config, and where that names none, fastest_mesh(). Throws InputError where the ranks do not fit what it names.
MeshShape choose_mesh(const PlanRequest& request, int ranks,
                      const std::vector<RecipeState>& states);

}  // namespace roundhouse
