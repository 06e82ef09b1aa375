#include "pipeline/schedule/device_relay.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "base/error.h"
#include "comm/device/device_transport.h"
#include "kernels/backend.h"
#include "tests/comm/mpi_world.h"
#if ROUNDHOUSE_NCCL_EMULATION
#include "comm/nccl/nccl_transport.h"
#include "nccl_emulation.h"
#endif

namespace roundhouse {
namespace {

constexpr std::int64_t kPieceBytes = 1000;

std::vector<std::byte> pattern(std::size_t bytes, int salt) {
  std::vector<std::byte> values(bytes);
  for (std::size_t i = 0; i < bytes; ++i) {
    values[i] = static_cast<std::byte>(i * 131 + i / 251 + static_cast<std::size_t>(salt));
  }
  return values;
}

// The ranks as stages of a pipeline; at four ranks two stages with teams of two.
class DeviceRelayTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (world_.size() == 1) GTEST_SKIP() << "needs another rank";
    const bool nccl = GetParam() != "staged";
#if ROUNDHOUSE_NCCL_EMULATION
    nccl_emulation::set_order(GetParam() == "nccl_newest"     ? nccl_emulation::Order::kNewest
                              : GetParam() == "nccl_shuffled" ? nccl_emulation::Order::kShuffled
                                                              : nccl_emulation::Order::kLaunched);
    backend_ = make_backend("cpu", {.threads = 1});
#else
    try {
      backend_ = make_backend(nccl ? "cuda" : "cpu",
                              {.threads = 1, .device = test_session().local_rank()});
    } catch (const Error&) {
    }
    if (world_.all_reduce_min(backend_ ? 1 : 0) == 0 ||
        (nccl && !choose_device_link(world_).direct))
      GTEST_SKIP() << "no GPU for each rank";
#endif
    data_ = world_.size() == 4 ? 2 : 1;
    team_ = world_.split(stage(), world_.rank());
    chain_ = world_.split(world_.rank() % data_, world_.rank());
    if (data_ > 1)
      device_team_ = connect(nccl, *team_, {.name = "the team", .peers = all_peers(*team_)});
    DeviceGroup neighbours{.name = "the chain", .peers = {}};
    if (stage() > 0) neighbours.peers.push_back(stage() - 1);
    if (!last()) neighbours.peers.push_back(stage() + 1);
    device_chain_ = connect(nccl, *chain_, neighbours);
  }
  void TearDown() override { world_.barrier(); }

  std::unique_ptr<Transport> connect(bool nccl, Communicator& host, const DeviceGroup& group) {
    const auto copy = [](auto from, auto to) { std::memcpy(to.data(), from.data(), from.size()); };
    if (!nccl) return make_staged_transport(host, {.download = copy, .upload = copy}, 333);
#if ROUNDHOUSE_NCCL_EMULATION
    return make_nccl_transport(host, group);
#else
    return make_device_transport({true, "NCCL"}, host, group, {});
#endif
  }

  int stage() const { return world_.rank() / data_; }
  bool last() const { return stage() + 1 == world_.size() / data_; }
  RelayLink link() const { return {*chain_, *device_chain_, *backend_}; }

  // Both ranks of a team send the other what it then has.
  void exchange_in_team(int salt) {
    if (!device_team_) return;
    Tensor sent(*backend_, DType::kU8, 1, 700), received(*backend_, DType::kU8, 1, 700);
    const auto bytes = [](Tensor& tensor) {
      return std::span(static_cast<std::byte*>(tensor.view().data), 700);
    };
    const auto values = [&](int rank) { return pattern(700, salt + 31 * rank); };
    const int other = 1 - team_->rank();
    const std::vector<std::byte> mine = values(team_->rank());
    backend_->upload(mine, sent.view().data);
    backend_->sync();
    const Send send{bytes(sent), other};
    const Receive receive{bytes(received), other};
    device_team_->start({&send, 1}, {&receive, 1})->wait();
    std::vector<std::byte> host(700);
    backend_->download(received.view().data, host);
    EXPECT_TRUE(host == values(other));
  }

  Communicator& world_ = test_world();
  int data_ = 1;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Communicator> team_, chain_;
  std::unique_ptr<Transport> device_team_, device_chain_;
};
#if ROUNDHOUSE_NCCL_EMULATION
INSTANTIATE_TEST_SUITE_P(All, DeviceRelayTest,
                         testing::Values("staged", "nccl", "nccl_newest", "nccl_shuffled"),
                         [](const auto& test) { return test.param; });
#else
INSTANTIATE_TEST_SUITE_P(All, DeviceRelayTest, testing::Values("staged", "nccl"),
                         [](const auto& test) { return test.param; });
#endif

// Down the stages, sending to the next one while receiving from the one before.
TEST_P(DeviceRelayTest, MovesHostMemoryPieceByPiece) {
  const std::vector<std::size_t> sizes{0, 1, 999, 1000, 1001, 25000};
  std::vector<std::vector<std::byte>> sent, received;
  std::vector<std::span<std::byte>> into;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    sent.push_back(pattern(sizes[i], world_.rank() * 100 + static_cast<int>(i)));
    received.emplace_back(sizes[i]);
    into.emplace_back(received.back());
  }
  std::unique_ptr<RelaySender> sender;
  if (!last()) {
    sender = std::make_unique<RelaySender>(link(), stage() + 1, kPieceBytes);
    for (const auto& bytes : sent) sender->add(bytes);
    EXPECT_FALSE(sender->done());
  }
  if (stage() > 0) {
    receive_relayed(link(), stage() - 1, into, kPieceBytes);
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      const int previous = world_.rank() - data_;
      EXPECT_TRUE(received[i] == pattern(sizes[i], previous * 100 + static_cast<int>(i))) << i;
    }
  }
  if (sender) sender->wait();
}

TEST_P(DeviceRelayTest, NothingIsSentBeforeTheReceiverIsThere) {
  std::vector<std::byte> sent = pattern(1500, 3), received(1500);
  const std::vector<std::span<std::byte>> into{received};
  if (stage() == 0) {
    RelaySender sender(link(), 1, kPieceBytes);
    sender.add(sent);
    for (int i = 0; i < 100; ++i) EXPECT_FALSE(sender.done());
    // A transfer that is under way would keep the device from what the team sends now.
    exchange_in_team(1);
    world_.barrier();
    sender.wait();
  } else {
    exchange_in_team(1);
    world_.barrier();
    if (stage() == 1) receive_relayed(link(), 0, into, kPieceBytes);
    EXPECT_TRUE(stage() != 1 || received == sent);
  }
}

// A pipeline as the schedule runs it: each stage receives an item, works on it with its team while the item before still
// goes out, and passes it on. The slower rank of a team is another one each time.
TEST_P(DeviceRelayTest, StagesRelayWhileTheirTeamsExchange) {
  constexpr int kItems = 6;
  constexpr std::size_t kBytes = 7500;
  std::unique_ptr<RelaySender> sender;
  std::vector<std::byte> going;
  for (int item = 0; item < kItems; ++item) {
    const int salt = 1000 * item + world_.rank() % data_;
    std::vector<std::byte> bytes(kBytes);
    if (stage() == 0) {
      bytes = pattern(kBytes, salt);
    } else {
      const std::vector<std::span<std::byte>> into{bytes};
      receive_relayed(link(), stage() - 1, into, kPieceBytes);
      EXPECT_TRUE(bytes == pattern(kBytes, salt)) << "item " << item;
    }
    for (int step = 0; step < 8; ++step) {
      const int ticks = (item + step + world_.rank()) % 3;
      for (int i = 0; sender && i < ticks; ++i) sender->done();
      exchange_in_team(100 * item + step);
    }
    if (last()) continue;
    if (sender) sender->wait();
    going = std::move(bytes);
    sender = std::make_unique<RelaySender>(link(), stage() + 1, kPieceBytes);
    sender->add(going);
  }
  if (sender) sender->wait();
}

}  // namespace
}  // namespace roundhouse
