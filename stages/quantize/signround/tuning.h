// SignRound's loop over one block.
#pragma once

#include "stages/quantize/signround/signround.h"

namespace roundhouse {

// Collective over the team; see Method::quantize().
QuantizedBlock tune_block(BlockTask& task, const SignRoundSettings& settings);

}  // namespace roundhouse
