#include "pipeline/schedule/waves.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>

namespace roundhouse {

std::vector<Wave> form_waves(const std::vector<Recipe>& recipes,
                             const std::vector<RecipeState>& states,
                             const std::vector<int>& lane_of, int most,
                             const std::function<bool(const Wave&)>& fits) {
  std::vector<Wave> waves;
  std::map<std::pair<int, std::string>, std::size_t> last;  // by lane and calibration set
  for (std::size_t r = 0; r < recipes.size(); ++r) {
    if (!states[r].to_do() || recipes[r].needs.makes_blocks_of_gradients()) continue;
    const std::string set = recipes[r].needs.streams() ? "of " + recipes[r].calibration : "";
    const std::pair key{lane_of.empty() ? 0 : lane_of[r], set};
    if (const auto found = last.find(key); found != last.end()) {
      Wave joined = waves[found->second];
      joined.push_back(r);
      if (static_cast<int>(joined.size()) <= most && fits(joined)) {
        waves[found->second] = std::move(joined);
        continue;
      }
    }
    last[key] = waves.size();
    waves.push_back({r});
  }
  for (Wave& wave : waves) {
    std::vector<std::string> methods;
    for (const std::size_t r : wave) methods.push_back(recipes[r].method);
    std::ranges::stable_sort(wave, {}, [&](std::size_t r) {
      return std::ranges::find(methods, recipes[r].method) - methods.begin();
    });
  }
  return waves;
}

std::vector<Wave> waves_of(const std::vector<std::size_t>& numbers,
                           const std::vector<Wave>& waves) {
  std::vector<Wave> chosen;
  std::map<const Wave*, std::size_t> place;
  for (const std::size_t r : numbers) {
    const auto found = std::ranges::find_if(
        waves, [&](const Wave& wave) { return std::ranges::find(wave, r) != wave.end(); });
    if (found == waves.end()) {
      chosen.push_back({r});
    } else if (place.emplace(&*found, chosen.size()).second) {
      Wave& wave = chosen.emplace_back();
      std::ranges::copy_if(*found, std::back_inserter(wave), [&](std::size_t member) {
        return std::ranges::find(numbers, member) != numbers.end();
      });
    }
  }
  return chosen;
}

Way way_through(const Recipe& recipe, const RecipeState& state, PartRange own) {
  const auto units = static_cast<int>(state.done.size());
  if (!recipe.needs.streams()) return {.begin = own.begin, .end = std::min(own.end, units)};
  const int first = state.snapshot, last = state.last_missing();
  return {.begin = std::max(own.begin, first),
          .end = std::max(std::max(own.begin, first), std::min(own.end, last + 1)),
          .arrives = first < own.begin && own.begin <= last,
          .goes_on = first < own.end && own.end <= last,
          .in_order = true,
          .original = recipe.needs.full_precision_stream};
}

PartRange own_units(const std::vector<Recipe>& recipes, const Wave& wave, PartRange own_blocks,
                    int blocks) {
  const auto includes = [&](std::size_t r) { return !recipes[r].include.empty(); };
  if (own_blocks.end == blocks && std::ranges::any_of(wave, includes)) ++own_blocks.end;
  return own_blocks;
}

}  // namespace roundhouse
