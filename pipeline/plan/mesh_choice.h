// Which mesh a job takes: the one that its configuration names, or else the one that the cost model finds fastest. No bit of a
// result depends on it.
#pragma once

#include <vector>

#include "pipeline/plan/simulated_job.h"

namespace roundhouse {

struct MeshChoice {
  MeshShape mesh;
  std::vector<int> lane_of;  // by recipe
  std::vector<Wave> waves;
  int most = 1;        // recipes of a wave
  double seconds = 0;  // reckoned, for the whole job
};

// Of all meshes of so many ranks that have what `wanted` says (0: anything): among those whose ranks' memory holds what they need
// without scratch files (all, where none does), the fastest; of those within 1 % of it, the one of fewest stages and lanes. On each,
// recipes go in waves of as many as `mesh.wave` says or, where it says nothing, of 8 at most, as far as the memory holds them. Throws
// InputError where the ranks fit none.
MeshChoice fastest_mesh(const PlanRequest& request, int ranks,
                        const std::vector<RecipeState>& states, MeshShape wanted);

// By `mesh:` of the config; of what it does not name, the fastest. Throws InputError where the ranks do not fit what it names.
MeshChoice choose_mesh(const PlanRequest& request, int ranks,
                       const std::vector<RecipeState>& states);

// The same InputError, before anything is known of the recipes.
void check_named_mesh(const RunConfig& config, int ranks, int blocks);

}  // namespace roundhouse
