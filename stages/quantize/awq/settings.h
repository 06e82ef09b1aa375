// What a recipe of AWQ may set (awq.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "model/quantized/linear_scheme.h"

namespace roundhouse {

struct AwqSettings {
  LinearScheme scheme;
  bool scale_search = true;
  bool clip_search = true;
  int grid_points = 20;
  std::int64_t clip_tokens = 512;  // 0: all
  // Of a model of several widths: of each linear of the block at hand, in place of the scheme's.
  std::vector<int> bits = {};
  double outliers = 0.0;  // percent of the weights of 2-bit linears that are kept beside them

  LinearScheme scheme_at(int width) const {
    LinearScheme at = scheme;
    at.bits = width;
    at.sparse = outliers > 0.0 && width == 2;
    return at;
  }
  LinearScheme scheme_of(int linear) const {
    return bits.empty() ? scheme : scheme_at(bits.at(static_cast<std::size_t>(linear)));
  }
};

}  // namespace roundhouse
