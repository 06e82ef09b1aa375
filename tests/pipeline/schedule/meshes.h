// The meshes that a test's ranks can form.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "pipeline/run/hdf5_store.h"
#include "pipeline/schedule/lane.h"
#include "pipeline/schedule/planner.h"

namespace roundhouse {

// Of one lane.
inline std::vector<MeshShape> meshes_of_one_lane(int ranks, int blocks) {
  std::vector<MeshShape> meshes;
  for (int pipeline = 1; pipeline <= std::min(ranks, blocks); ++pipeline) {
    if (ranks % pipeline == 0) meshes.push_back({pipeline, ranks / pipeline});
  }
  return meshes;
}
// With lanes, too.
inline std::vector<MeshShape> all_meshes(int ranks, int blocks) {
  std::vector<MeshShape> meshes;
  for (const MeshShape all : meshes_of_one_lane(ranks, blocks)) {
    for (int lanes = 1; lanes <= all.pipeline; ++lanes) {
      if (all.pipeline % lanes == 0) meshes.push_back({all.pipeline / lanes, all.data, lanes});
    }
  }
  return meshes;
}

// Of all recipes of a lane and calibration set together, as far as `most` lets them.
inline std::vector<Wave> waves_of_up_to(int most, const std::vector<Recipe>& recipes,
                                        const std::vector<RecipeState>& states, MeshShape shape,
                                        const std::vector<int>& lane_of) {
  return form_waves(recipes, states, shape.lanes > 1 ? lane_of : std::vector<int>{}, most,
                    [](const Wave&) { return true; });
}

// As a job has them: the mesh of all ranks, and where there are lanes, that of this rank's. Recipes that take as long as each other.
struct Meshes {
  Meshes(Communicator& world, MeshShape shape, const std::vector<Recipe>& recipes, int blocks,
         Memory& memory)
      : all(world, shape.all_lanes(), blocks, memory) {
    std::vector<double> seconds;
    for (const Recipe& recipe : recipes) seconds.push_back(recipe.needs.streams() ? 1 : 0);
    lane_of = deal_recipes(seconds, shape.lanes);
    if (shape.lanes > 1) lane.emplace(all, shape, blocks, memory, lane_of);
  }
  // Recipes of several lanes write snapshots of the full-precision stream at the same time.
  void name_writer(RunStore& store) const {
    auto* const files = dynamic_cast<Hdf5Store*>(&store);
    if (files && lane) files->set_writer("lane-" + std::to_string(lane->number()));
  }
  const Lane* own_lane() const { return lane ? &*lane : nullptr; }
  const Mesh& of_recipes() const { return lane ? lane->mesh() : all; }

  Mesh all;
  std::vector<int> lane_of;
  std::optional<Lane> lane;
};

}  // namespace roundhouse
