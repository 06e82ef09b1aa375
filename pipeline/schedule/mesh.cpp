#include "pipeline/schedule/mesh.h"

#include <algorithm>
#include <span>

#include <fmt/format.h>

#include "base/error.h"

namespace roundhouse {

std::string describe(MeshShape shape) {
  return fmt::format("{}{} x {}", shape.lanes > 1 ? fmt::format("{} lanes of ", shape.lanes) : "",
                     shape.pipeline, shape.data);
}

MeshShape named_mesh(MeshShape named, int ranks, int blocks) {
  MeshShape shape = named;
  shape.lanes = std::max(1, named.lanes);
  if (named.pipeline == 0) shape.pipeline = std::max(1, ranks / (shape.lanes * named.data));
  if (named.data == 0) shape.data = std::max(1, ranks / (shape.lanes * named.pipeline));
  if (shape.stages() * shape.data != ranks) {
    throw InputError(
        fmt::format("mesh: {} (pipeline x data) does not fit {} ranks", describe(shape), ranks));
  }
  if (shape.stages() > blocks) {
    throw InputError(fmt::format("mesh: {}: more pipeline stages than the model's {} blocks",
                                 describe(shape), blocks));
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
    const DeviceGroup group{.name = fmt::format("the team of pipeline stage {}", stage()),
                            .peers = all_peers(*team_),
                            .broadcasts = true};
    device_team_ = make_device_transport(link, *team_, group, copies);
  }
  if (shape.pipeline > 1 && link.direct) {
    DeviceGroup group{.name = fmt::format("the stages' ranks {}", team_->rank()), .peers = {}};
    if (stage() > 0) group.peers.push_back(stage() - 1);
    if (stage() + 1 < shape.pipeline) group.peers.push_back(stage() + 1);
    device_chain_ = make_device_transport(link, *chain_, group, copies);
  }
}

}  // namespace roundhouse
