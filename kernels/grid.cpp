#include "kernels/grid.h"

#include <cmath>
#include <string>

#include <fmt/format.h>

#include "base/numerical_error.h"
#include "kernels/grid_point.h"

namespace roundhouse {
namespace {

std::string range_text(float lo, float hi) { return fmt::format("[{:f}, {:f}]", lo, hi); }

}  // namespace

std::string_view name_of(Grid grid) {
  switch (grid) {
    case Grid::kAsymGptq:
      return "A-gptq";
    case Grid::kAsymAwq:
      return "A-awq";
    case Grid::kAsymAutoRound:
      return "A-ar";
    case Grid::kSymGptq:
      return "S-gptq";
    case Grid::kSymFull:
      return "S-full";
  }
  throw Error(fmt::format("internal error: not a grid: {}", static_cast<int>(grid)));
}

bool is_symmetric(Grid grid) { return grid == Grid::kSymGptq || grid == Grid::kSymFull; }

GridPoint make_grid_point(Grid grid, int bits, float lo, float hi) {
  require(1 <= bits && bits <= 8, "a grid has 1 to 8 bits");
  if (!std::isfinite(lo) || !std::isfinite(hi)) {
    throw NumericalError("a group of weights has the range " + range_text(lo, hi) +
                         ": it holds NaN or infinity");
  }
  require(lo <= hi, "a group of weights has its range upside down");
  const GridPoint point = grid_point_of(grid, bits, lo, hi);
  if (!is_usable(point.scale)) {
    throw NumericalError(
        fmt::format("a group of weights has the range {}: its scale at {} bits exceeds float16's "
                    "largest value, 65504",
                    range_text(lo, hi), bits));
  }
  return point;
}

}  // namespace roundhouse
