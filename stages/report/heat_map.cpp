#include "stages/report/heat_map.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "model/block/model_units.h"
#include "stages/report/figure_text.h"

namespace roundhouse {
namespace {

// In the order of a block, not of the alphabet: as far as these names say what they are.
constexpr const char* kOrder[] = {"q_proj",   "k_proj",    "v_proj",       "o_proj",
                                  "out_proj", "gate_proj", "up_proj",      "down_proj",
                                  "fc1",      "fc2",       "embed_tokens", "lm_head"};

std::size_t place_of(const std::string& linear) {
  const auto* found =
      std::ranges::find_if(kOrder, [&](const char* name) { return linear.ends_with(name); });
  return static_cast<std::size_t>(found - std::begin(kOrder));
}

std::vector<std::string> linears_of(const BlockErrors& errors) {
  std::vector<std::string> names;
  for (const auto& [block, linears] : errors) {
    for (const auto& [name, error] : linears) names.push_back(name);
  }
  std::ranges::sort(names);
  names.erase(std::unique(names.begin(), names.end()), names.end());
  std::ranges::stable_sort(names, {}, place_of);
  return names;
}

}  // namespace

int HeatLevels::operator()(double error) const {
  if (!std::isfinite(error)) return -1;
  if (!(error > least) || !(most > least)) return 0;
  const double share = std::log(error / least) / std::log(most / least);
  return std::clamp(static_cast<int>(share * kLevels), 0, kLevels - 1);
}

double HeatLevels::bound(int level) const {
  if (!(most > least)) return least;
  return least * std::pow(most / least, static_cast<double>(level) / kLevels);
}

HeatLevels heat_levels(const std::vector<ReportRow>& rows) {
  HeatLevels levels;
  for (const ReportRow& row : rows) {
    for (const auto& [block, linears] : row.errors) {
      for (const auto& [name, error] : linears) {
        if (!std::isfinite(error) || !(error > 0)) continue;
        levels.least = levels.least > 0 ? std::min(levels.least, error) : error;
        levels.most = std::max(levels.most, error);
      }
    }
  }
  return levels;
}

nlohmann::json draw_heat_map(const ReportRow& row, const HeatLevels& levels, int blocks) {
  const std::vector<std::string> linears = linears_of(row.errors);
  if (linears.empty()) return nullptr;
  std::vector<std::string> paths(HeatLevels::kLevels + 1);  // the last: not finite
  double largest = -INFINITY;
  std::string where;
  for (std::size_t l = 0; l < linears.size(); ++l) {
    int run_begin = 0, run_end = 0, run_level = -2;  // neighbours of the same level are one stroke
    const auto end_run = [&] {
      if (run_level < -1) return;
      const auto path = static_cast<std::size_t>(run_level < 0 ? HeatLevels::kLevels : run_level);
      paths[path] += fmt::format("M{} {}.5h{}", run_begin, l, run_end - run_begin);
    };
    for (const auto& [block, errors] : row.errors) {
      const auto found = errors.find(linears[l]);
      if (found == errors.end()) continue;
      const int level = levels(found->second);
      if (level != run_level || block != run_end) {
        end_run();
        run_begin = block;
        run_level = level;
      }
      run_end = block + 1;
      if (!(found->second > largest)) continue;
      largest = found->second;
      where = fmt::format("{}, {}", unit_name(block, row.blocks, row.include), linears[l]);
    }
    end_run();
  }
  blocks = std::max(blocks, row.errors.rbegin()->first + 1);
  nlohmann::json map = {{"name", row.name},
                        {"blocks", std::to_string(blocks)},
                        {"rows", std::to_string(linears.size())},
                        {"linears", linears},
                        {"paths", nlohmann::json::array()},
                        {"largest", where.empty() ? "" : scientific(largest) + ", " + where}};
  for (std::size_t level = 0; level < paths.size(); ++level) {
    if (paths[level].empty()) continue;
    map["paths"].push_back({{"level", level == HeatLevels::kLevels ? "bad" : std::to_string(level)},
                            {"path", paths[level]}});
  }
  return map;
}

}  // namespace roundhouse
