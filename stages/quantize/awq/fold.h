// Where the scales of AWQ go: columns of linears are multiplied with them, and what makes the inputs is divided by them.
//
// Norms and biases end up in the checkpoint's type again. The new weight of a norm is n' = round(n / s), and the factor of the
// columns is then not s but n / n', of which the stored norm is exactly the inverse. Rounding n' therefore changes nothing in what
// the block computes; only a bias (OPT) is rounded for good. Rows of a linear are divided in F32, before it is quantized.
#pragma once

#include <vector>

#include "model/checkpoint/checkpoint.h"
#include "stages/quantize/awq/search.h"

namespace roundhouse {

struct Folding {
  // By linear of the block; empty: ones.
  std::vector<std::vector<float>> column_factors;
  std::vector<std::vector<float>> row_divisors;
  DenseTensors replaced;
};

// A channel whose folded norm or bias would not be finite, or 0 where it was not, keeps the scale 1: it is counted under
// "unscaled_channels" in the set's record.
Folding fold(const Checkpoint& checkpoint, const DecoderBlock& decoder, int block,
             std::vector<ChosenScales>& chosen);

}  // namespace roundhouse
