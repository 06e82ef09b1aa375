#include "pipeline/schedule/planner.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <utility>

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
    return !recipes[r].needs.makes_blocks_of_gradients() || !states[r].done[block];
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
    auto& steps = stages[stage];
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

// One stage's walk through a wave of recipes of which something is missing.
class WavePlan {
 public:
  WavePlan(const std::vector<Recipe>& recipes, const std::vector<RecipeState>& states,
           const Wave& wave, int number, PartRange own, int blocks, std::vector<Step>& steps)
      : recipes_(recipes),
        states_(states),
        number_(number),
        own_(own),
        blocks_(blocks),
        steps_(steps) {
    for (const std::size_t r : wave)
      members_.push_back({r, way_through(recipes[r], states[r], own)});
  }

  void plan() {
    bring([&](const Member& m) { return m.way.arrives; }, Kind::kReceive, own_.begin);
    for (int block = own_.begin; block < own_.end; ++block) {
      bring([&](const Member& m) { return enters(m, block); },
            block > 0 ? Kind::kLoad : Kind::kEmbed, block);
      pass(block);
    }
    send([](const Member& m) { return m.way.goes_on; }, Kind::kHandOver, own_.end);
  }

 private:
  struct Member {
    std::size_t recipe;
    Way way;
  };

  bool works(const Member& m, int block) const { return m.way.through(block, states_[m.recipe]); }
  bool makes(const Member& m, int block) const {
    return works(m, block) && !states_[m.recipe].done[block];
  }
  bool enters(const Member& m, int block) const {
    return m.way.in_order && !m.way.arrives && m.way.begin == block && works(m, block);
  }

  bool gathers_alike(const Member& a, const Member& b) const {
    const Recipe &one = recipes_[a.recipe], &other = recipes_[b.recipe];
    const auto given = [](const LinearOverride& x, const LinearOverride& y) {
      return x.given == y.given;
    };
    return !one.needs.gathers.empty() && one.method == other.method &&
           one.needs.gathers == other.needs.gathers &&
           std::ranges::equal(one.overrides, other.overrides, given);
  }

  // Whoever comes first has the full-precision stream along.
  template <class Which>
  void bring(const Which& which, Kind kind, int block) {
    for (const Member& m : members_) {
      if (!which(m)) continue;
      const bool original = m.way.original && !original_there_;
      original_there_ = original_there_ || original;
      steps_.push_back({kind, m.recipe, block, number_, false, original});
    }
  }
  template <class Which>
  void send(const Which& which, Kind kind, int block) {
    bool sent = false;
    for (const Member& m : members_) {
      if (!which(m)) continue;
      const bool original = m.way.original && !sent;
      sent = sent || original;
      steps_.push_back({kind, m.recipe, block, number_, false, original});
    }
  }

  void pass(int block) {
    // A method that makes a block has the stream's output as well; else it is run forward.
    const bool by_a_method = std::ranges::any_of(
        members_, [&](const Member& m) { return m.way.original && makes(m, block); });
    bool passed = false, loaded = false, goes_on = false;
    for (const Member& m : members_) {
      if (!works(m, block)) continue;
      const bool make = makes(m, block);
      const bool original = m.way.original && !passed && make == by_a_method;
      passed = passed || original;
      // What is outside the blocks is loaded for each.
      const bool loads = (make || original) && (!loaded || block >= blocks_);
      loaded = loaded || loads;
      const bool gathered = make && std::ranges::any_of(members_, [&](const Member& other) {
                              return &other < &m && makes(other, block) && gathers_alike(other, m);
                            });
      steps_.push_back({make ? Kind::kMake : Kind::kReplay, m.recipe, block, number_, loads,
                        original, gathered});
      goes_on = goes_on || (m.way.original && !m.way.finishes_at(block));
    }
    send(
        [&](const Member& m) {
          return m.way.in_order && works(m, block) && block < states_[m.recipe].last_missing();
        },
        Kind::kSnapshotIfDue, block + 1);
    original_there_ = goes_on;
  }

  const std::vector<Recipe>& recipes_;
  const std::vector<RecipeState>& states_;
  int number_;
  PartRange own_;  // units
  int blocks_;
  std::vector<Step>& steps_;
  std::vector<Member> members_;
  bool original_there_ = false;
};

}  // namespace

std::vector<std::vector<Step>> plan_steps(const std::vector<Recipe>& recipes,
                                          std::vector<RecipeState> states, MeshShape mesh,
                                          int blocks, const std::vector<int>& lane_of,
                                          const std::vector<Wave>& waves) {
  std::vector<std::vector<Step>> stages(static_cast<std::size_t>(mesh.stages()));
  for (const auto& [size, users] : gradient_users(recipes, states))
    plan_gradients(recipes, users, states, mesh.all_lanes(), blocks, stages);
  for (std::size_t r = 0; r < recipes.size(); ++r) {
    if (!recipes[r].needs.decision || states[r].decision || states[r].failure) continue;
    for (auto& steps : stages) steps.push_back({Kind::kDecide, r, 0});
  }
  int number = 0;
  // The recipes of a lane, or of all, through as many stages.
  const auto plan = [&](int lane, int first_stage, int count) {
    std::vector<std::size_t> numbers;
    for (std::size_t r = 0; r < recipes.size(); ++r) {
      if (states[r].to_do() && (lane_of.empty() || mesh.lanes == 1 || lane_of[r] == lane))
        numbers.push_back(r);
    }
    for (const Wave& wave : waves_of(numbers, waves)) {
      for (int stage = 0; stage < count; ++stage) {
        const PartRange own = own_units(recipes, wave, parts_of_rank(blocks, stage, count), blocks);
        WavePlan(recipes, states, wave, number, own, blocks, stages[first_stage + stage]).plan();
      }
      ++number;
    }
  };
  plan(Lane::kAllLanes, 0, mesh.stages());
  for (int lane = 0; lane < mesh.lanes && mesh.lanes > 1; ++lane)
    plan(lane, lane * mesh.pipeline, mesh.pipeline);
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
    states[r].done.assign(static_cast<std::size_t>(recipes[r].units(blocks)), false);
    states[r].decides = recipes[r].needs.decision;
  }
  return states;
}

}  // namespace roundhouse
