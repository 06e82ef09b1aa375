// SignRound's loop over one block.
#pragma once

#include "stages/quantize/method.h"
#include "stages/quantize/signround/settings.h"

namespace roundhouse {

// Collective over the team; see Method::quantize().
QuantizedBlock tune_block(BlockTask& task, const SignRoundSettings& settings);

}  // namespace roundhouse
