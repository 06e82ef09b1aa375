// validate() in two parts, for who packs or unpacks codes.
#pragma once

#include "model/quantized/quantized_linear.h"

namespace roundhouse {

// All of validate() but the range of the codes, the one part that takes a pass over all weights: whoever packs them sees it, and what
// was unpacked from so many bits has it.
void validate_beside_codes(const QuantizedLinear& linear);
[[noreturn]] void throw_code_out_of_range(const QuantizedLinear& linear);

}  // namespace roundhouse
