// How many threads each rank computes with: the processors that the ranks of a node may use, shared so that nobody waits for
// another and none is left idle.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "comm/launcher.h"

namespace roundhouse {

// What the ranks of one node are bound to. Processors are what the operating system numbers: hardware threads.
struct NodeBinding {
  std::vector<std::vector<int>> ranks;  // processors that each rank may use
  std::vector<int> launcher;   // those of mpirun, which could have given them; empty: not known
  std::map<int, int> core_of;  // of a processor; its own number where it is not here
};

struct ThreadPlan {
  std::vector<int> threads;           // by rank; at least 1
  bool unbind = false;                // the node's only rank takes all that its launcher has
  std::string summary;                // "2 ranks x 4 threads on 8 processors (8 cores)"
  std::vector<std::string> warnings;  // each says what to do
};

// A processor that several ranks may use counts for each of them by its part. One rank alone that mpirun has bound to a single
// core, as it does unless told otherwise, is unbound.
ThreadPlan plan_threads(const NodeBinding& binding);

struct RankThreads {
  int threads;
  std::string summary;  // of this rank's node
};

// What the plan of its node says for this rank, which is bound anew where it says so. Each node's first rank prints the
// warnings. Collective over the ranks of a node.
RankThreads choose_threads(const LaunchSession& session);

}  // namespace roundhouse
