// From which magnitude on the weights of each matrix are outliers: one factor of the distance between its quartiles for the whole model
// (outliers.h). It follows from the weights alone.
#pragma once

#include <cstdint>
#include <span>

#include <nlohmann/json.hpp>

#include "comm/communicator.h"
#include "stages/quantize/method.h"

namespace roundhouse {

// Collective over the world; each rank reads its share of the blocks, three times. `percent`, above 0: of all weights of all linears but skipped ones that are
// to be outliers at most. Throws UnquantizableError, on all ranks, where the weights have no such factor. Returns {"factor", "outliers": their number, "weights": of all, "large_from": [block][linear]}.
nlohmann::json find_outlier_thresholds(ModelTask& task, double percent);

// Collective: each becomes the sum over the ranks.
void add_over_ranks(Communicator& ranks, std::span<std::int64_t> counts);

}  // namespace roundhouse
