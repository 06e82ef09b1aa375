// What a recipe of AWQ may set (awq.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "model/quantized/linear_scheme.h"
#include "stages/quantize/method.h"

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
  LinearScheme scheme_of(const BlockTask& task, int linear) const {
    const auto i = static_cast<std::size_t>(linear);
    return task.scheme_of(i, bits.empty() ? scheme : scheme_at(bits.at(i)));
  }
};

}  // namespace roundhouse
