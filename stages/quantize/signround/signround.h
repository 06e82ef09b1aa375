// SignRound (Cheng et al. 2023, "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs"; auto-round):
// learns, through the whole block, whether each weight is rounded up or down and how much of each group's range is used.
//
//   target = block(original weights, full-precision stream)             once
//   repeat `iterations` times, rate falling linearly to 0:
//     y = block(rounded weights, quantized stream) of a batch;  loss = mean (y - target)²
//     keep the codes of this forward pass if no loss was smaller;  step against the sign of the gradient (learned_rounding.h)
//   output = block(codes kept, quantized stream)
//
// The first iteration is round to nearest on the same grid; a loss is that of its own batch. A loss that is not finite is not
// stepped on; if none is finite, the block is rounded to nearest.
//
//   preset    iterations   rate               grid     samples   batches
//   paper     200          1 / iterations     A-ar     512       independent     the paper's, and the default
//   current   200          1 / iterations     S-full   128       epochs          auto-round's defaults today, as the two below
//   light     50           0.005              S-full   128       epochs
//   best      1000         1 / iterations     S-full   512       epochs
//
// As in auto-round today, current and best take twice the rate at 2 and 3 bits from 1000 iterations on.
//
// Where steps take long, what is learned is kept every few minutes (block_progress.h), and a resume goes on from there.
//
// Options, all with the preset's value unless given: iterations, batch_size (8), learning_rate, minmax_learning_rate
// (learning_rate), minmax_tuning, quantized_input (false: blocks are tuned on the full-precision stream), best_loss (false: the
// last iteration's codes), samples (the first so many of the run's), sampling, seed, grid or symmetric.
//
// Record of a linear: "error", "relative_error" as in rtn.h, and "fallback": "rtn". Record of the block: "loss" {"first", "best",
// "best_iteration"}, "iterations", "samples", "batch_size", "skipped_steps" if there were any, "phases" and "flops"
// (phase_clock.h).
#pragma once

#include <memory>

#include "stages/quantize/method.h"
#include "stages/quantize/options.h"

namespace roundhouse {

std::unique_ptr<Method> make_signround(OptionReader& options);

}  // namespace roundhouse
