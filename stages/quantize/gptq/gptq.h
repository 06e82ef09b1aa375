// GPTQ (Frantar et al. 2022): rounds a linear column by column and lets the columns still to come make up for the error, by
// the inverse of H = 2/n sum xᵀ x over the linear's inputs x.
//
// A block is walked group by group of its inputs. With `true_sequential` the inputs of a group come from the groups before it as
// quantized: one staged pass, in which each group is applied once (a single forward pass of the block in all). Without, all
// Hessians come from one pass with the original weights, and a second pass makes the block's output.
//
// Record of a linear: "error", the sum of the losses e² / 2, which is tr((W - Q) H (W - Q)ᵀ) / 2 with the damped H;
// "relative_error", to the same with Q = 0 and the diagonal of H alone; "damping", "damping_tries", "diagonal_floor",
// "dead_columns"; "rounded_rows", how many rows were rounded to nearest because their loss exceeded that of Q = 0 and that of
// rounding; and "fallback": "rtn" (error then as in rtn.h) where H could not be factorized, with "hessian":
// "not finite" where that is why. Record of the block:
// "dropped_samples", a list of {"linears", "count", "samples"}, "phases" and "flops" (phase_clock.h).
#pragma once

#include <memory>

#include "stages/quantize/method.h"
#include "stages/quantize/options.h"

namespace roundhouse {

std::unique_ptr<Method> make_gptq(OptionReader& options);

}  // namespace roundhouse
