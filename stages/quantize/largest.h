// The largest weights of a linear, which are kept beside what is rounded.
#pragma once

#include <cstdint>
#include <functional>

#include "comm/communicator.h"
#include "kernels/backend.h"
#include "stages/quantize/squeezellm/outliers.h"

namespace roundhouse {

// Collective over the ranks: the rank-th largest of what `count` hands to the selection, all ranks' together.
float select_over_ranks(Communicator& ranks, bool magnitude, std::int64_t rank,
                        const std::function<void(KeySelection& selection)>& count);

// Collective over the team: the magnitude from which on `percent` of a linear's `weights` are (more where some are equally large);
// infinity for none. `count` as above.
float magnitude_of_largest(Communicator& team, std::int64_t weights, double percent,
                           const std::function<void(KeySelection& selection)>& count);

// Weights of at least this magnitude become 0. Returns where: U8, like w. w: F32.
Tensor remove_large(Tensor& w, float large_from, Backend& backend);

}  // namespace roundhouse
