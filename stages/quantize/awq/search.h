// AWQ's search for the scales of input columns.
#pragma once

#include <span>
#include <vector>

#include "stages/quantize/awq/statistics.h"

namespace roundhouse {

// The outcome for one ScaleSet.
struct ChosenScales {
  std::vector<float> s;   // by column of the set's input; positive and finite
  nlohmann::json record;  // see awq.h
};

// s = max(magnitude^ratio, 1e-4) / sqrt(max s min s); where that is not finite 1.
std::vector<float> candidate_scales(const std::vector<double>& magnitude, double ratio);

// [1, n] on the device; empty for no values.
Tensor upload_row(std::span<const float> values, Backend& backend);

// By DecoderBlock::scale_sets(). Collective. With Δ = Q(w diag(s)) diag(1/s) - w, the loss of a set that is_judged_by_gram() comes
// from its Gram matrix G, without another pass: the sum over rows of Δ G Δᵀ. Another one that is_linear() takes the sum of
// (x Δᵀ)² over all tokens. The rest run the module, with its output in full precision made once for all candidates. Where
// tokens are looked at, the block's output is then left in task.output_of_original(), if the task makes it.
std::vector<ChosenScales> search_scales(BlockTask& task, const AwqSettings& settings,
                                        const BlockStatistics& statistics, PhaseClock& clock);

}  // namespace roundhouse
