// What flows between the blocks of a model that is being quantized (stages/quantize/needs.h).
#pragma once

#include <array>
#include <string_view>

#include "stages/flow/activations.h"

namespace roundhouse {

// The residuals of one rank's shards between two blocks, one set a stream; nullptr where a stream is not asked for. Not owned.
struct StreamActivations {
  Activations* quantized = nullptr;
  Activations* full_precision = nullptr;

  struct Named {
    std::string_view name;  // "residual", "original": the tensors of a snapshot
    Activations* activations;
  };
  // Both, in a fixed order; look at `activations` before use.
  std::array<Named, 2> all() const {
    return {Named{"residual", quantized}, Named{"original", full_precision}};
  }
};

}  // namespace roundhouse
