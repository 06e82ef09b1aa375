// The blocks of weights that GGUF holds, as far as our grids fit them exactly. Each is value = d * integer, or d * code - d * zero, with
// a float16 d, which is the group's scale:
//
//   block   weights  bytes  integers             of grids
//   Q4_0         32     18  [-8, 7]              symmetric up to 4 bits, asymmetric of 2 and 3: code - zero is in [-7, 7]
//   Q5_0         32     22  [-16, 15]            symmetric of 5 bits, asymmetric of 4
//   Q8_0         32     34  [-128, 127]          all others but asymmetric ones of 8 bits
//   Q2_K        256     84  codes up to 3        2 bits, where a group covers whole blocks
//   Q3_K        256    110  [-4, 3]              symmetric of 3 bits, likewise
//   Q4_K        256    144  codes up to 15       asymmetric of 3 and 4 bits, likewise
//
// K types have further scales of 16 or 32 weights within a block, integers that multiply d: here all are 1, and those of the offset
// are the zero point.
#pragma once

#include <optional>

#include "model/checkpoint/gguf.h"
#include "model/quantized/quantized_linear.h"

namespace roundhouse {

// Nothing: none holds such a linear of so many columns exactly.
std::optional<GgmlType> block_type_for(const LinearScheme& scheme, std::int64_t cols);

// All blocks of a linear, U8 [rows, bytes of a row]. Precondition: block_type_for() its scheme is `type`.
HostTensor pack_blocks(const QuantizedLinear& linear, GgmlType type);

// Weight `index` of a block, as llama.cpp computes it. Shares nothing with pack_blocks().
float weight_in_block(const std::byte* block, GgmlType type, int index);

}  // namespace roundhouse
