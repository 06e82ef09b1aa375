#include "pipeline/device_relay.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "comm/staged_transport.h"
#include "kernels/backend.h"
#include "tests/comm/mpi_world.h"

namespace roundhouse {
namespace {

std::vector<std::byte> pattern(std::size_t bytes, int salt) {
  std::vector<std::byte> values(bytes);
  for (std::size_t i = 0; i < bytes; ++i) {
    values[i] = static_cast<std::byte>(i * 131 + i / 251 + static_cast<std::size_t>(salt));
  }
  return values;
}

// Around the ring, sending to the next rank while receiving from the one before.
TEST(DeviceRelayTest, MovesHostMemoryPieceByPiece) {
  Communicator& world = test_world();
  if (world.size() == 1) GTEST_SKIP() << "needs another rank";
  const auto backend = make_backend("cpu", {.threads = 1});
  const auto copy = [](auto from, auto to) { std::memcpy(to.data(), from.data(), from.size()); };
  const auto transport = make_staged_transport(world, {.download = copy, .upload = copy}, 333);
  const int next = (world.rank() + 1) % world.size();
  const int previous = (world.rank() + world.size() - 1) % world.size();

  const std::vector<std::size_t> sizes{0, 1, 999, 1000, 1001, 25000};  // pieces of 1000 bytes
  std::vector<std::vector<std::byte>> sent, received;
  std::vector<std::span<std::byte>> into;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    sent.push_back(pattern(sizes[i], world.rank() * 100 + static_cast<int>(i)));
    received.emplace_back(sizes[i]);
    into.emplace_back(received.back());
  }
  RelaySender sender(*transport, *backend, next, 1000);
  for (const auto& bytes : sent) sender.add(bytes);
  EXPECT_FALSE(sender.done());
  // Even ranks receive first: a sender is also moved on by whoever polls the transport.
  if (world.rank() % 2 == 1 || world.size() == 1) sender.wait();
  receive_relayed(*transport, *backend, previous, into, 1000);
  sender.wait();
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    EXPECT_TRUE(received[i] == pattern(sizes[i], previous * 100 + static_cast<int>(i))) << i;
  }
  world.barrier();
}

}  // namespace
}  // namespace roundhouse
