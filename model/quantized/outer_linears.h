// What a recipe has made of the linears outside the blocks.
#pragma once

#include <optional>

#include "model/quantized/quantized_linear.h"

namespace roundhouse {

// Nothing: the original's.
struct OuterLinears {
  std::optional<QuantizedLinear> embedding, head;
};

}  // namespace roundhouse
