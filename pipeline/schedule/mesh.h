// The ranks of a job as a mesh of pipeline x data:
//
//   6 ranks, pipeline 2, data 3           stage 0: ranks 0 1 2   blocks [0, n/2)    team of 3
//                                         stage 1: ranks 3 4 5   blocks [n/2, n)    team of 3
//
// A stage owns a run of consecutive blocks; the ranks of its team share each block's work by shards and row tiles. Rank d
// of a team holds the same shards in every stage, so activations go from (stage, d) to (stage + 1, d).
#pragma once

#include <memory>
#include <string>

#include "comm/communicator.h"
#include "comm/device/device_transport.h"
#include "comm/tree_sum.h"
#include "kernels/memory.h"

namespace roundhouse {

struct MeshShape {
  int pipeline = 1;
  int data = 1;
  int lanes = 1;  // such meshes side by side (lane.h)

  int stages() const { return lanes * pipeline; }
  MeshShape all_lanes() const { return {stages(), data}; }
  MeshShape one_lane() const { return {pipeline, data}; }
  bool operator==(const MeshShape&) const = default;
};

std::string describe(MeshShape shape);  // "2 x 4", "3 lanes of 2 x 4"

// What a configuration names. Of pipeline and data one may be 0: as the ranks then make it; no lanes are one. Throws InputError if
// lanes x pipeline x data is not the number of ranks, or a stage of them would have no block.
MeshShape named_mesh(MeshShape named, int ranks, int blocks);

class Mesh {
 public:
  // Collective. `shape`: of one lane. `memory`: of this rank's device.
  Mesh(Communicator& world, MeshShape shape, int blocks, Memory& memory);

  Communicator& world() const { return world_; }
  Communicator& team() const { return *team_; }
  // The team's messages between device memories; the team itself where that is host memory, or there
  // is nobody to send to.
  Transport& device_team() const { return device_team_ ? *device_team_ : *team_; }
  // The ranks that activations pass through on their way, by stage: (0, d), (1, d), ...; for a rank of position d in its team.
  Communicator& chain() const { return *chain_; }
  // The same from device to device; nullptr where there is no faster way than between the hosts. Each rank talks to the
  // stage before and the stage after its own.
  Transport* device_chain() const { return device_chain_.get(); }
  // How activations and sums travel, for the log: "MPI", "NCCL", ...
  const std::string& traffic() const { return traffic_; }
  MeshShape shape() const { return shape_; }
  int stage() const { return world_.rank() / shape_.data; }
  PartRange blocks() const { return parts_of_rank(blocks_, stage(), shape_.pipeline); }
  int stage_of_block(int block) const { return rank_of_part(blocks_, block, shape_.pipeline); }
  int next_rank() const { return world_.rank() + shape_.data; }  // Precondition: not the last stage
  int previous_rank() const {
    return world_.rank() - shape_.data;
  }  // Precondition: not the first stage

 private:
  Communicator& world_;
  MeshShape shape_;
  int blocks_;
  std::unique_ptr<Communicator> team_;
  std::unique_ptr<Communicator> chain_;
  std::string traffic_ = "MPI";
  std::unique_ptr<Transport> device_team_;
  std::unique_ptr<Transport> device_chain_;
};

}  // namespace roundhouse
