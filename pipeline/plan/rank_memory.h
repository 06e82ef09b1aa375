// What a rank has of its node's memory and of its device's, beside what it needs.
#pragma once

#include <cstddef>

#include "pipeline/plan/cost_model.h"

namespace roundhouse {

// Bytes.
struct RankMemory {
  double device = 0;       // infinite where that is the host's
  double host = 0;         // the node's, shared by its ranks
  double activations = 0;  // of these; more goes through files
};

// As much of it as may be planned for.
RankMemory rank_memory(const CostModel& costs);

// Does what these recipes need, as a wave, fit, without files for activations? And what every recipe needs, each alone?
bool fits_memory(const CostModel& costs, const Wave& wave);
bool fits_memory(const CostModel& costs);

}  // namespace roundhouse
