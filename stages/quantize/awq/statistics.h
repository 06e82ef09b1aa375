// What AWQ needs to know of the inputs of a block's linears, from one pass of the original block over all samples.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "stages/flow/phase_clock.h"
#include "stages/quantize/awq/settings.h"
#include "stages/quantize/method.h"

namespace roundhouse {

// Of one input group of the block. What was not asked for is empty. The same on every rank.
struct InputStatistics {
  std::vector<double> magnitude;  // mean |x| by column
  Tensor gram;                    // sum xᵀ x, symmetric, F32 [cols, cols]
  bool has_gram = false;
  // The same over the sampled tokens by groups of columns: GroupGrams. By their size, which linears may differ in.
  std::map<std::int64_t, Tensor> group_grams;
};

struct BlockStatistics {
  std::vector<InputStatistics> inputs;  // by group
  std::int64_t tokens = 0;              // all but those of dropped samples
  std::vector<std::int64_t>
      dropped;  // samples of this rank that are left out: something in them is not finite
  nlohmann::json record = nlohmann::json::object();  // what the block's record says of these
};

// A set whose loss follows from the Gram matrix of its input: the set's linears are all that is inspected.
inline bool is_linear(const ScaleSet& set) { return set.group == set.last_group; }

// Collective. Leaves the block's output in task.output_of_original() if `store_output`.
BlockStatistics collect_statistics(const BlockTask& task, const AwqSettings& settings,
                                   bool store_output, PhaseClock& clock);
// What they depend on beside the block, for BlockShare.
std::string statistics_key(const BlockTask& task, const AwqSettings& settings);

}  // namespace roundhouse
