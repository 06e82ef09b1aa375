// Blocks x linears of a recipe by relative error, as places in a drawing: one path for each level of color, in units of cells.
#pragma once

#include <vector>

#include <nlohmann/json.hpp>

#include "stages/report/report.h"

namespace roundhouse {

// From the least to the largest error of all recipes, in equal steps of the logarithm, so that recipes compare by color.
struct HeatLevels {
  static constexpr int kLevels = 10;
  double least = 0, most = 0;  // 0: there is no error above 0

  int operator()(double error) const;  // 0 to kLevels - 1; errors of 0 or less: 0; -1: not finite
  double bound(int level) const;       // the least error of a level
};
HeatLevels heat_levels(const std::vector<ReportRow>& rows);

// `blocks`: of the model, as far as is known.
nlohmann::json draw_heat_map(const ReportRow& row, const HeatLevels& levels, int blocks);

}  // namespace roundhouse
