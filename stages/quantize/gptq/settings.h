// What a recipe of GPTQ may set (gptq.h).
#pragma once

#include "model/quantized/linear_scheme.h"

namespace roundhouse {

// How the columns of a linear are ordered, and where the grids of its groups come from.
enum class ActOrder {
  kStatic,  // by importance (diagonal of H, descending); grids of the original groups, fixed beforehand
  kDynamic,  // by importance; groups of consecutive columns in that order, grids from the updated weights
  kNone  // as they are; grids from the updated weights
};

struct GptqSettings {
  LinearScheme scheme;
  double damping = 0.01;  // of the mean of the diagonal of H
  ActOrder act_order = ActOrder::kStatic;
  bool true_sequential = true;
  bool clip_search = false;
};

}  // namespace roundhouse
