// Which GPU each rank takes, decided from what all ranks see: by place on the node where every rank sees all of its GPUs, and
// just as well where a launcher or a container shows each rank its own, or fewer GPUs than there are ranks.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "comm/communicator.h"
#include "kernels/backend.h"

namespace roundhouse {

// visible[r]: what tells the GPUs apart that rank r sees, by its index for them (at least one). Returns, by rank, the index of the
// GPU it takes: as evenly as what they see allows, and ranks that see the same GPUs take them in turn.
std::vector<int> choose_gpus(const std::vector<std::vector<std::string>>& visible);

struct DeviceChoice {
  std::string backend;   // "cpu" or "cuda"
  int index = 0;         // of the GPU, for this rank
  int sharers = 1;       // ranks that take from this rank's device memory, this one included
  nlohmann::json ranks;  // GPUs only: by rank {"node": ..., "gpu": UUID}
  std::string sharing;   // one line for people; empty where every rank has a GPU of its own
};

// Collective over `world`. `wish`: "auto" (GPUs where all ranks have one, the CPU where none has), "cpu" or "cuda".
// `local_size`: ranks on this rank's node. Throws the same on every rank: InputError where no rank has the device, BadNodeError
// where some have none.
DeviceChoice choose_device(const std::string& wish, int local_size, Communicator& world);

}  // namespace roundhouse
