#include "pipeline/schedule/lane.h"

#include <utility>

#include "base/error.h"

namespace roundhouse {

Lane::Lane(const Mesh& all, MeshShape shape, int blocks, Memory& memory, std::vector<int> lane_of)
    : count_(shape.lanes),
      number_(all.stage() / shape.pipeline),
      lane_of_(std::move(lane_of)),
      world_(all.world().split(number_, all.world().rank())) {
  require(all.shape() == shape.all_lanes(), "lanes are of the stages of the mesh of all ranks");
  mesh_ = std::make_unique<Mesh>(*world_, shape.one_lane(), blocks, memory);
}

}  // namespace roundhouse
