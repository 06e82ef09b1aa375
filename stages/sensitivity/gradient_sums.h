// Which sums of a block's gradients are wanted (stages/sensitivity/block_gradients.h).
#pragma once

namespace roundhouse {

struct GradientSums {
  bool sum = false;  // of dL_s/dW
  bool squares =
      false;  // of its elements' squares: the diagonal of the empirical Fisher information, times the sequences
  bool operator==(const GradientSums&) const = default;
};

}  // namespace roundhouse
