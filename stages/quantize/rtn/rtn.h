// RTN: every weight to the nearest point of its group's grid. Needs no data.
//
// The grid is an option because several RTNs exist and are not interchangeable: A-gptq (the default), A-awq (the RTN of most
// papers' tables), A-ar (AutoRound's), S-gptq (`symmetric: true`) and S-full (AutoRound's current default). All work in F32 with
// scales rounded to float16. Error: sum (w - q)² / 2, relative to sum w² / 2.
#pragma once

#include <memory>

#include "stages/quantize/method.h"
#include "stages/quantize/options.h"
#include "stages/quantize/row_tiles.h"

namespace roundhouse {

std::unique_ptr<Method> make_rtn(OptionReader& options);

// GPTQ's `mse` search where clip_search is on, else none.
ClipSearch clip_search_steps(bool clip_search);

// Rows w of a linear (F32), each weight to the nearest point. The error is that of the result against `original`, the rows
// before whatever a method did to w.
TileResult round_tile(const QuantizedLinear& linear, const Tensor& w, const Tensor& original,
                      const ClipSearch& clip, Backend& backend);

// One linear, tile by tile. Collective over the team.
SolveError round_to_nearest(const TeamSite& site, QuantizedLinear& linear, const Tensor& weights,
                            const ClipSearch& clip);

}  // namespace roundhouse
