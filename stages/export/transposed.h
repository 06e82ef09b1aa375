// What the layouts have in common that are transposed: outputs run along a row of the file.
#pragma once

#include "model/quantized/quantized_linear.h"

namespace roundhouse {

// Codes as I32 [cols bits / 32, rows]: column n is the stream of the codes of inputs 0, 1, ... of output n.
void pack_transposed(const QuantizedLinear& linear, HostTensor& packed);
// Scales as F16 [groups, rows].
void transpose_scales(const QuantizedLinear& linear, HostTensor& transposed);

}  // namespace roundhouse
