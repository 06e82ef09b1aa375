#include "pipeline/plan/rank_memory.h"

#include <algorithm>
#include <limits>

namespace roundhouse {

namespace {
constexpr double kMostOfMemory = 0.95;
}

RankMemory rank_memory(const CostModel& costs) {
  const DeviceRates& rates = costs.job().rates;
  const double gib = costs.job().config.activation_memory_gib;
  const double host = rates.host_bytes / std::min(costs.job().ranks, rates.ranks_a_node);
  return {.device = rates.is_host ? std::numeric_limits<double>::infinity()
                                  : kMostOfMemory * rates.device_bytes,
          .host = kMostOfMemory * host,
          .activations = gib > 0 ? gib * 0x1p30 : host / 2};
}

bool fits_memory(const CostModel& costs, const Wave& wave) {
  const RankMemory has = rank_memory(costs);
  const MemoryUse needs = costs.memory(wave);
  return needs.device <= has.device && needs.host <= has.host &&
         needs.activations <= has.activations;
}

bool fits_memory(const CostModel& costs) {
  for (std::size_t r = 0; r < costs.job().config.recipes.size(); ++r) {
    if (!fits_memory(costs, {r})) return false;
  }
  return true;
}

}  // namespace roundhouse
