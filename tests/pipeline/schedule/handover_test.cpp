// Activations between stages whose devices are connected, on an imitation of NCCL.
#include "pipeline/schedule/handover.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <stdexcept>
#include <vector>

#include "comm/host/backoff.h"
#include "nccl_emulation.h"
#include "tests/comm/mpi_world.h"

namespace roundhouse {
namespace {

// Memory that is not the host's, as far as the mesh can see.
class DeviceMemory final : public Memory {
 public:
  Buffer allocate(std::size_t bytes) override {
    return {static_cast<std::byte*>(::operator new(bytes, std::align_val_t(64))),
            [](std::byte* memory) { ::operator delete(memory, std::align_val_t(64)); }};
  }
  void upload(std::span<const std::byte> from, void* to) override {
    std::memcpy(to, from.data(), from.size());
  }
  void download(const void* from, std::span<std::byte> to) override {
    std::memcpy(to.data(), from, to.size());
  }
  void copy(ConstMatrix, Matrix) override { throw std::logic_error("no kernels here"); }
  void zero(Matrix) override { throw std::logic_error("no kernels here"); }
  void sync() override {}
  DType activation_type() const override { return DType::kF32; }
  std::size_t available_bytes() const override { return std::size_t{1} << 30; }
};

constexpr std::int64_t kRows = 40, kCols = 16;

class HandoverTest : public testing::Test {
 protected:
  void SetUp() override {
    if (world_.size() == 1) GTEST_SKIP() << "needs another rank";
  }

  using Streams = std::vector<std::unique_ptr<Activations>>;
  // A stream.
  Streams item(int number) {
    Streams streams;
    streams.push_back(std::make_unique<Activations>(budget_, DType::kF32, kCols));
    streams.front()->reserve(0, kRows);
    std::ranges::fill(streams.front()->bytes(0), static_cast<std::byte>(number));
    return streams;
  }

  Communicator& world_ = test_world();
  ActivationBudget budget_{std::size_t{1} << 20, std::filesystem::temp_directory_path()};
  DeviceMemory memory_;
};

// The first stage makes the second item only once the last one has the first: what a stage passes on must arrive while it
// waits for the stage before.
TEST_F(HandoverTest, WhatAStagePassesOnArrivesWhileItWaits) {
  const int last = world_.size() - 1;
  const int made = nccl_emulation::communicators_made();
  const Mesh mesh(world_, {.pipeline = world_.size(), .data = 1}, world_.size(), memory_);
  EXPECT_EQ(mesh.traffic(), "NCCL");
  EXPECT_EQ(nccl_emulation::communicators_made(), made + 1);  // no team to connect
  JobMonitor monitor(world_, nullptr, 600, 0);
  Handover handover(mesh, memory_, monitor);
  std::byte word{};
  for (int number = 1; number <= 3; ++number) {
    // Of a wave of three recipes: the first has failed, the others share the stream.
    const std::vector<bool> come = {false, true, true};
    Streams streams = item(mesh.stage() == 0 ? number : 0);
    if (mesh.stage() > 0) {
      ASSERT_EQ(handover.receive_header(come.size()), come);
      handover.receive({streams.front().get()}, {0, 1});
      for (const std::byte value : streams.front()->bytes(0))
        ASSERT_EQ(value, static_cast<std::byte>(number));
    }
    if (mesh.stage() < last) handover.send(come, std::move(streams), {0, 1});
    if (mesh.stage() == last) {
      const Send send{{&word, 1}, 0};
      world_.start({&send, 1}, {})->wait();
    } else if (mesh.stage() == 0) {
      const Receive receive{{&word, 1}, last};
      const auto ticket = world_.start({}, {&receive, 1});
      for (Backoff backoff(0); !ticket->done(); backoff.pause()) handover.progress();
    }
  }
  // Where all have failed, there is nothing behind the announcement.
  const std::vector<bool> none = {false, false};
  if (mesh.stage() > 0) {
    ASSERT_EQ(handover.receive_header(2), none);
  }
  if (mesh.stage() < last) handover.send(none, {}, {0, 1});
  if (mesh.stage() < last) handover.send_stop(2);
  for (int wave = 0; wave < 2 && mesh.stage() > 0; ++wave)
    EXPECT_FALSE(handover.receive_header(2)) << "it is told once, and holds for all that follows";
  handover.finish();
}

TEST_F(HandoverTest, AMeshHasACommunicatorForTheTeamAndOneForTheStages) {
  if (world_.size() != 4) return;
  const int made = nccl_emulation::communicators_made();
  const Mesh mesh(world_, {.pipeline = 2, .data = 2}, 2, memory_);
  EXPECT_EQ(nccl_emulation::communicators_made(), made + 2);
  std::byte value{static_cast<unsigned char>(mesh.team().rank() + 1)};
  mesh.device_team().broadcast({&value, 1}, 1);
  EXPECT_EQ(value, std::byte{2});
}

}  // namespace
}  // namespace roundhouse
