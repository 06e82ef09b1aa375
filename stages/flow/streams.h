// The two ways in which calibration samples go through a model that is being quantized, block by block.
#pragma once

#include <array>
#include <memory>
#include <string_view>

#include "stages/flow/activations.h"

namespace roundhouse {

// Which of them a method looks at.
struct Streams {
  bool quantized = false;       // through the blocks as quantized so far
  bool full_precision = false;  // through the original blocks

  // Without any, blocks do not depend on each other, and nothing flows between them.
  bool any() const { return quantized || full_precision; }
};

// The residuals of one rank's shards between two blocks, one set a stream; nullptr where a stream is not asked for.
struct StreamActivations {
  std::unique_ptr<Activations> quantized;
  std::unique_ptr<Activations> full_precision;

  struct Named {
    std::string_view name;  // "residual", "original": the tensors of a snapshot
    Activations* activations;
  };
  // Both, in a fixed order; look at `activations` before use.
  std::array<Named, 2> all() const {
    return {Named{"residual", quantized.get()}, Named{"original", full_precision.get()}};
  }
};

}  // namespace roundhouse
