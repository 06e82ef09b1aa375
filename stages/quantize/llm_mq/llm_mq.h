// LLM-MQ (Li et al. 2023): each linear of the model gets 2, 3 or 4 bits, so that an average is kept and the sum of sensitivities is
// least (bit_allocation.h); then AWQ's scales, and clipped ranges (which the paper does not name; `clip_search: false` leaves them
// out), are searched with each linear at its own width, and weights are rounded to nearest. Of linears of 2 bits the largest weights, `outliers` percent, are kept beside the rounded ones, as a sparse matrix.
//
// With g a weight's gradient, summed over calibration sequences, and d = w - Q_b(w), the sensitivity of a linear at b bits is by `score`
//   first-order   |sum g d|      the paper's; it can be larger for more bits
//   absolute      sum |g d|
//   fisher        sum F d²       F the sum of squared gradients
// What the choice by the first leaves of the budget, since more bits would count as worse, goes to where `absolute` falls most by it:
// nothing that was asked for stays unspent, and no linear gets fewer bits than by the score.
// Q_b is plain rounding of the original weights on the grid of their groups, where b is 2 without the outliers. The paper says
// neither that nor which samples. `tie: fused` gives linears with a common input the same bits (q, k, v; gate, up), as engines
// that fuse them need. The budget counts codes alone, as the paper's does; the average with scales and zero points is recorded.
//
// Linears whose width an override says take part in the budget and have no choice; those that are skipped are in neither. (Decision:
// "bits" of a skipped linear is 16.)
//
// Statistics of a block: {"linears": [{"first_order": [2, 3, 4 bits], "absolute": .., "fisher": ..}]}. Decision: {"bits": [block][linear],
// "average", "average_with_grids", "sensitivity"}. A linear's record is AWQ's; its error is of what is rounded.
#pragma once

#include <memory>

#include "stages/quantize/method.h"
#include "stages/quantize/options.h"

namespace roundhouse {

std::unique_ptr<Method> make_llm_mq(OptionReader& options);

}  // namespace roundhouse
