// Recipes side by side. The stages of a job's mesh fall into lanes, and each lane has all blocks of the model: its recipes go
// through it one after the other, while those of the other lanes go through theirs.
//
//   12 ranks, 3 lanes, pipeline 2, data 2        lane 0   recipes A, D    stage 0: ranks 0 1     stage 1: ranks 2 3
//                                                lane 1   recipes B, E    stage 0: ranks 4 5     stage 1: ranks 6 7
//                                                lane 2   recipe  C       stage 0: ranks 8 9     stage 1: ranks 10 11
//
// A pipeline has to be filled and emptied, and sends activations from stage to stage; lanes do neither, but each rank of a lane holds
// more of a recipe's activations. What all ranks do together (a walk through gradients, decisions, recipes without activations, whose
// blocks are dealt to all) they do on one mesh of all lanes' stages.
#pragma once

#include <memory>
#include <vector>

#include "pipeline/schedule/mesh.h"

namespace roundhouse {

class Lane {
 public:
  // Collective over the world of `all`, whose stages are those of the lanes of `shape`. `lane_of`: by recipe; kAllLanes: made on `all`.
  Lane(const Mesh& all, MeshShape shape, int blocks, Memory& memory, std::vector<int> lane_of);

  static constexpr int kAllLanes = -1;

  int count() const { return count_; }
  int number() const { return number_; }  // of this rank's
  const Mesh& mesh() const { return *mesh_; }
  int lane_of(std::size_t recipe) const { return lane_of_[recipe]; }

 private:
  int count_;
  int number_;
  std::vector<int> lane_of_;
  std::unique_ptr<Communicator> world_;
  std::unique_ptr<Mesh> mesh_;
};

}  // namespace roundhouse
