#include "pipeline/schedule/mesh.h"

#include <algorithm>
#include <span>

#include "base/error.h"

namespace roundhouse {

std::string describe(MeshShape shape) {
  return (shape.lanes > 1 ? std::to_string(shape.lanes) + " lanes of " : "") +
         std::to_string(shape.pipeline) + " x " + std::to_string(shape.data);
}

MeshShape named_mesh(MeshShape named, int ranks, int blocks) {
  MeshShape shape = named;
  shape.lanes = std::max(1, named.lanes);
  if (named.pipeline == 0) shape.pipeline = std::max(1, ranks / (shape.lanes * named.data));
  if (named.data == 0) shape.data = std::max(1, ranks / (shape.lanes * named.pipeline));
  if (shape.stages() * shape.data != ranks) {
    throw InputError("mesh: " + describe(shape) + " (pipeline x data) does not fit " +
                     std::to_string(ranks) + " ranks");
  }
  if (shape.stages() > blocks) {
    throw InputError("mesh: " + describe(shape) + ": more pipeline stages than the model's " +
                     std::to_string(blocks) + " blocks");
  }
  return shape;
}

Mesh::Mesh(Communicator& world, MeshShape shape, int blocks, Memory& memory)
    : world_(world),
      shape_(shape),
      blocks_(blocks),
      team_(world.split(stage(), world.rank())),
      chain_(world.split(world.rank() % shape.data, world.rank())) {
  if (memory.is_host_memory() || world.size() == 1) return;
  const DeviceCopies copies{
      .download = [&memory](std::span<const std::byte> device,
                            std::span<std::byte> host) { memory.download(device.data(), host); },
      .upload =
          [&memory](std::span<const std::byte> host, std::span<std::byte> device) {
            memory.upload(host, device.data());
            memory.sync();
          }};
  const DeviceLink link = choose_device_link(world_);
  traffic_ = link.description;
  if (shape.data > 1) {
    const DeviceGroup group{.name = "the team of pipeline stage " + std::to_string(stage()),
                            .peers = all_peers(*team_),
                            .broadcasts = true};
    device_team_ = make_device_transport(link, *team_, group, copies);
  }
  if (shape.pipeline > 1 && link.direct) {
    DeviceGroup group{.name = "the stages' ranks " + std::to_string(team_->rank()), .peers = {}};
    if (stage() > 0) group.peers.push_back(stage() - 1);
    if (stage() + 1 < shape.pipeline) group.peers.push_back(stage() + 1);
    device_chain_ = make_device_transport(link, *chain_, group, copies);
  }
}

}  // namespace roundhouse
