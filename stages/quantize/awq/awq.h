// AWQ (Lin et al. 2024, "Activation-aware Weight Quantization"): before weights are rounded to nearest, the input columns that see
// large activations are scaled up, and what makes these inputs is scaled down by as much; then each group's range is clipped where
// that lowers its error. Settings and order are those of the authors' program, llm-awq.
//
//   search   For each set of linears with a common input (model/block/decoder_block.h, ScaleSet) and each ratio r = i / grid_points:
//            s = max(mean |x|^r, 1e-4), divided by sqrt(max s min s); the loss is the mean squared error of the module's output
//            with Q(W diag(s)) diag(1/s) in place of W. The first least loss wins; r = 0 is plain rounding. All sets are searched
//            with the original weights and the inputs of the original model.
//   fold     Columns times s; the norm, or the rows and bias of the linear before, divided by s.
//   clip     For each (row, group) of all linears but queries and keys: the bound, of max|w| times 1, 0.95, .., 0.55, with the
//            least squared error of the group's share of the output over `clip_tokens` tokens, evenly spaced.
//   round    To nearest, on the grid of the clipped group.
//
// A folded norm or bias is rounded to the checkpoint's type, and for a norm s is then taken from what is stored (old / new), so that
// this rounding changes nothing: see awq_fold.h.
//
// Record of a linear: "error", sum (w - q)² / 2 of the folded weights before clipping, and "relative_error", to the same with q = 0;
// where it was clipped "clip": {"groups", "clipped", "error_before", "error_after"}. Record of the block: "scale_sets", a list of
// {"linears", "ratio", "loss_before" (at r = 0), "loss", and where it happened "unscaled_channels" and "fallback": "no scaling", which
// its linears have too; a set that would change a linear that is skipped is not scaled: {"linears", "skipped": true}}; "dropped_samples", "phases" and "flops" as for GPTQ. A loss that is not finite is null.
#pragma once

#include <memory>
#include <string>

#include "stages/quantize/method.h"
#include "stages/quantize/options.h"

namespace roundhouse {

std::unique_ptr<Method> make_awq(OptionReader& options);

// The method itself, for others that build on it: settings may give each linear its own width, and keep the largest weights
// of those of 2 bits beside them. These are removed after scaling, and count for nothing in a group's range or in the error.
struct AwqSettings;
void read_searches(OptionReader& options, AwqSettings& settings);  // what is searched, and how long
QuantizedBlock quantize_by_awq(BlockTask& task, const AwqSettings& settings);
BlockCost awq_cost(const DecoderBlock& decoder, int samples, int length, DType activations,
                   const AwqSettings& settings, MadeBefore made);
std::string awq_gathers(const AwqSettings& settings);  // Needs::gathers

}  // namespace roundhouse
