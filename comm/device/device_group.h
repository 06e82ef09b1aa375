// Ranks whose device memories are to be connected.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "comm/communicator.h"

namespace roundhouse {

struct DeviceGroup {
  std::string name;         // for messages: "the team of pipeline stage 1"
  std::vector<int> peers;   // ranks that this one exchanges messages with; each names the other
  bool broadcasts = false;  // whether broadcast() will be called, on all ranks
  std::chrono::seconds deadline{300};  // for all to be connected
};

// All ranks but this one.
inline std::vector<int> all_peers(const Communicator& host) {
  std::vector<int> peers;
  for (int rank = 0; rank < host.size(); ++rank) {
    if (rank != host.rank()) peers.push_back(rank);
  }
  return peers;
}

}  // namespace roundhouse
