#include "pipeline/schedule/planner.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "pipeline/schedule/gradient_recipes.h"
#include "pipeline/schedule/lane.h"

namespace roundhouse {
namespace {

using Kind = Step::Kind;

// A walk through gradients, on all stages; leaves its recipes in the state that it brings them to.
void plan_gradients(const std::vector<Recipe>& recipes, const std::vector<std::size_t>& users,
                    std::vector<RecipeState>& states, MeshShape mesh, int blocks,
                    std::vector<std::vector<Step>>& stages) {
  const auto everywhere = [&](const Step& step) {
    for (auto& steps : stages) steps.push_back(step);
  };
  const auto waits = [&](std::size_t r, int block) {
    return !recipes[r].needs.makes_blocks_of_gradients() ||
           !states[r].done[static_cast<std::size_t>(block)];
  };
  for (const std::size_t r : users) {
    if (recipes[r].needs.makes_blocks_of_gradients() && recipes[r].needs.decision &&
        !states[r].decision) {
      everywhere({Kind::kDecide, r, 0});
      states[r].decision = nlohmann::json::object();
    }
  }
  int first = 0;
  const auto anybody = [&](int block) {
    return std::ranges::any_of(users, [&](std::size_t r) { return waits(r, block); });
  };
  while (first < blocks && !anybody(first)) ++first;
  for (int stage = 0; first < blocks && stage < mesh.pipeline; ++stage) {
    const PartRange own = parts_of_rank(blocks, stage, mesh.pipeline);
    auto& steps = stages[static_cast<std::size_t>(stage)];
    for (int block = own.begin; block < own.end; ++block)
      steps.push_back({Kind::kForward, users.front(), block});
    for (int block = own.end - 1; block >= std::max(own.begin, first); --block) {
      steps.push_back({Kind::kBackward, users.front(), block});
      for (const std::size_t r : users) {
        if (!waits(r, block)) continue;
        const bool makes = recipes[r].needs.makes_blocks_of_gradients();
        steps.push_back({makes ? Kind::kMake : Kind::kStatistics, r, block});
      }
    }
  }
  for (const std::size_t r : users) {
    if (recipes[r].needs.makes_blocks_of_gradients()) {
      states[r].done.assign(states[r].done.size(), true);
    } else {
      everywhere({Kind::kDecide, r, 0});
      states[r].decision = nlohmann::json::object();
    }
  }
}

// One stage's walk through one recipe of which something is missing.
void plan_recipe(const Recipe& recipe, std::size_t r, const RecipeState& state, PartRange own,
                 std::vector<Step>& steps) {
  const auto done = [&](int block) { return state.done[static_cast<std::size_t>(block)]; };
  if (!recipe.needs.streams()) {
    for (int block = own.begin; block < own.end; ++block) {
      if (!done(block)) steps.push_back({Kind::kMake, r, block});
    }
    return;
  }
  const int last = state.last_missing();
  const int begin = std::max(own.begin, state.snapshot), end = std::min(own.end, last + 1);
  if (begin >= end) return;
  steps.push_back({state.snapshot < own.begin ? Kind::kReceive
                   : begin > 0                ? Kind::kLoad
                                              : Kind::kEmbed,
                   r, begin});
  for (int block = begin; block < end; ++block) {
    steps.push_back({done(block) ? Kind::kReplay : Kind::kMake, r, block});
    if (block < last) steps.push_back({Kind::kSnapshotIfDue, r, block + 1});
  }
  if (own.end <= last) steps.push_back({Kind::kHandOver, r, own.end});
}

}  // namespace

std::vector<std::vector<Step>> plan_steps(const std::vector<Recipe>& recipes,
                                          std::vector<RecipeState> states, MeshShape mesh,
                                          int blocks, const std::vector<int>& lane_of) {
  std::vector<std::vector<Step>> stages(static_cast<std::size_t>(mesh.stages()));
  for (const auto& [size, users] : gradient_users(recipes, states))
    plan_gradients(recipes, users, states, mesh.all_lanes(), blocks, stages);
  for (std::size_t r = 0; r < recipes.size(); ++r) {
    if (!recipes[r].needs.decision || states[r].decision || states[r].failure) continue;
    for (auto& steps : stages) steps.push_back({Kind::kDecide, r, 0});
  }
  const auto plan = [&](std::size_t r, int first_stage, int count) {
    for (int stage = 0; states[r].to_do() && stage < count; ++stage) {
      plan_recipe(recipes[r], r, states[r], parts_of_rank(blocks, stage, count),
                  stages[static_cast<std::size_t>(first_stage + stage)]);
    }
  };
  const bool lanes = mesh.lanes > 1;
  for (std::size_t r = 0; r < recipes.size() && lanes; ++r) {
    if (lane_of[r] == Lane::kAllLanes) plan(r, 0, mesh.stages());
  }
  for (std::size_t r = 0; r < recipes.size(); ++r) {
    if (!lanes)
      plan(r, 0, mesh.pipeline);
    else if (lane_of[r] != Lane::kAllLanes)
      plan(r, lane_of[r] * mesh.pipeline, mesh.pipeline);
  }
  return stages;
}

std::vector<int> deal_recipes(const std::vector<double>& seconds, int lanes) {
  std::vector<std::size_t> longest_first(seconds.size());
  std::iota(longest_first.begin(), longest_first.end(), 0);
  std::ranges::stable_sort(longest_first, std::greater<>(),
                           [&](std::size_t r) { return seconds[r]; });
  std::vector<double> load(static_cast<std::size_t>(lanes));
  std::vector<int> lane_of(seconds.size(), Lane::kAllLanes);
  for (const std::size_t r : longest_first) {
    if (seconds[r] <= 0) continue;
    const auto least = std::ranges::min_element(load);
    *least += seconds[r];
    lane_of[r] = static_cast<int>(least - load.begin());
  }
  return lane_of;
}

std::vector<RecipeState> fresh_states(const std::vector<Recipe>& recipes, int blocks) {
  std::vector<RecipeState> states(recipes.size());
  for (std::size_t r = 0; r < recipes.size(); ++r) {
    states[r].done.assign(static_cast<std::size_t>(blocks), false);
    states[r].decides = recipes[r].needs.decision;
  }
  return states;
}

}  // namespace roundhouse
