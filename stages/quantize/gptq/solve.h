// Rounds one linear by GPTQ, given the factor of its Hessian. Rows do not depend on each other, so tiles of them are solved by
// the ranks of the team.
//
// Columns go in the factor's order, in panels of at most 128: within a panel each column's error is spread at once
// (kernels' gptq_panel), to the columns right of it by one matrix product. Grids:
//   one group a row    from the row, before dead columns are set to 0
//   static             of each original group, from the weights with dead columns set to 0; columns take their group's along
//   dynamic, none      of a group when its first column is reached, from the weights as updated by then. A panel ends where a group
//                      does, so that these are never stale, not even for groups narrower than a panel (the reference implementation
//                      takes weights without the updates from within the panel there).
// Dead columns are 0: their codes are the zero point.
#pragma once

#include "comm/communicator.h"
#include "kernels/backend.h"
#include "stages/quantize/gptq/factor.h"
#include "stages/quantize/gptq/settings.h"
#include "stages/quantize/row_tiles.h"

namespace roundhouse {

// Collective over the team; `weights` and `factor` are the same on all ranks. Where there is no factor (H not positive definite, or not
// finite) all rows are rounded to nearest instead, else those whose loss exceeds that of zeros and that of rounding. Fills the record (gptq.h).
QuantizedLinear solve_gptq(const LinearSpec& spec, const Tensor& weights,
                           const GptqSettings& settings, const HessianFactor& factor,
                           const TeamSite& site);

}  // namespace roundhouse
