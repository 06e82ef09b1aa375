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

// A set whose linears are all that is inspected.
inline bool is_linear(const ScaleSet& set) { return set.group == set.last_group; }
// Whether its losses follow from the Gram matrix of its input, of `cols` columns: that takes `cols` operations in F32 for each weight
// and candidate, the outputs of all tokens as many as there are tokens, with factors of the type of activations. Where both are
// F32, always; else by what takes less time.
inline bool is_judged_by_gram(const ScaleSet& set, std::int64_t cols, double tokens,
                              DType activations) {
  constexpr double kF32Time =
      16;  // of an operation in F32 on a GPU, in operations with 16-bit factors
  return is_linear(set) &&
         (activations == DType::kF32 || kF32Time * static_cast<double>(cols) <= tokens);
}
inline bool is_judged_by_gram(const BlockTask& task, const ScaleSet& set) {
  const auto tokens = static_cast<double>(task.samples->count() * task.samples->length());
  return is_judged_by_gram(set, task.decoder.shared_inputs()[set.group].cols, tokens,
                           task.backend.activation_type());
}
// The phase that this counts in (works_in_f32()).
inline std::string gram_search_phase(DType activations) {
  return activations == DType::kF32 ? "search" : "search in F32";
}
// Otherwise, for each token and weight: of a module the outputs as it is and for each candidate, of a linear what these differ by.
inline double search_operations(const ScaleSet& set, double points) {
  return 2 * (is_linear(set) ? points : points + 1);
}

// Collective. Leaves the block's output in task.output_of_original() if `store_output`.
BlockStatistics collect_statistics(const BlockTask& task, const AwqSettings& settings,
                                   bool store_output, PhaseClock& clock);
// What they depend on beside the block, for BlockShare.
std::string statistics_key(const BlockTask& task, const AwqSettings& settings);

}  // namespace roundhouse
