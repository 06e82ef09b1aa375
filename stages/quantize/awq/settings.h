// What a recipe of AWQ may set (awq.h).
#pragma once

#include <cstdint>

#include "model/quantized/linear_scheme.h"

namespace roundhouse {

struct AwqSettings {
  LinearScheme scheme;
  bool scale_search = true;
  bool clip_search = true;
  int grid_points = 20;
  std::int64_t clip_tokens = 512;  // 0: all
};

}  // namespace roundhouse
