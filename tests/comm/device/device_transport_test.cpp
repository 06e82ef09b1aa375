// What every transport between device memories promises. Without CUDA, NCCL and the device are imitated (tests/nccl_emulation).
#include "comm/device/device_transport.h"

#include <cuda_runtime_api.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <string>

#include "base/error.h"
#include "comm/nccl/nccl_transport.h"
#include "comm/tree_sum.h"
#include "tests/comm/mpi_world.h"

namespace roundhouse {
namespace {

using Values = std::vector<std::uint64_t>;

Values pattern(std::size_t count, int salt) {
  Values values(count);
  for (std::size_t i = 0; i < count; ++i) {
    values[i] = (i + 1) * 0x9e3779b97f4a7c15u + static_cast<std::uint64_t>(salt);
  }
  return values;
}

// Numbers in device memory.
class OnDevice {
 public:
  explicit OnDevice(const Values& values) : count_(values.size()) {
    EXPECT_EQ(cudaMalloc(&memory_, bytes().size()), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(memory_, values.data(), bytes().size(), cudaMemcpyDefault), cudaSuccess);
  }
  ~OnDevice() { cudaFree(memory_); }
  OnDevice(OnDevice&& other) noexcept
      : memory_(std::exchange(other.memory_, nullptr)), count_(other.count_) {}
  OnDevice& operator=(OnDevice&&) = delete;

  std::span<std::byte> bytes() const {
    return {static_cast<std::byte*>(memory_), count_ * sizeof(std::uint64_t)};
  }
  Values values() const {
    Values host(count_);
    EXPECT_EQ(cudaMemcpy(host.data(), memory_, bytes().size(), cudaMemcpyDefault), cudaSuccess);
    return host;
  }

 private:
  void* memory_ = nullptr;
  std::size_t count_;
};

DeviceCopies copies() {
  return {.download =
              [](std::span<const std::byte> device, std::span<std::byte> host) {
                cudaMemcpy(host.data(), device.data(), host.size(), cudaMemcpyDefault);
              },
          .upload =
              [](std::span<const std::byte> host, std::span<std::byte> device) {
                cudaMemcpy(device.data(), host.data(), host.size(), cudaMemcpyDefault);
              }};
}

bool has_gpu_for_each_rank() {
  int devices = 0;
  return cudaGetDeviceCount(&devices) == cudaSuccess && devices >= test_world().size();
}

class DeviceTransportTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (test_world().all_reduce_min(has_gpu_for_each_rank() ? 1 : 0) == 0) {
      GTEST_SKIP() << "no GPU for each rank";
    }
    ASSERT_EQ(cudaSetDevice(test_session().local_rank()), cudaSuccess);
    Communicator& world = test_world();
    transport_ = GetParam() == "nccl"
                     ? make_nccl_transport(world, {.name = "all ranks",
                                                   .peers = all_peers(world),
                                                   .broadcasts = true,
                                                   .deadline = std::chrono::seconds(60)})
                     : make_staged_transport(world, copies(), 1000);
  }
  // Nobody leaves while others still need its progress.
  void TearDown() override { test_world().barrier(); }

  int rank() const { return transport_->rank(); }
  int size() const { return transport_->size(); }
  int next() const { return (rank() + 1) % size(); }
  int previous() const { return (rank() + size() - 1) % size(); }
  bool alone() const { return size() == 1; }  // no other rank to send to

  std::unique_ptr<Transport> transport_;
};
INSTANTIATE_TEST_SUITE_P(All, DeviceTransportTest, testing::Values("staged", "nccl"),
                         [](const auto& test) { return test.param; });

TEST_P(DeviceTransportTest, BroadcastCopiesTheRootWhicheverItIs) {
  for (int root = 0; root < size(); ++root) {
    for (const std::size_t count : {0u, 1u, 1000u}) {
      const OnDevice data(pattern(count, rank() == root ? 42 : -1));
      transport_->broadcast(data.bytes(), root);
      EXPECT_EQ(data.values(), pattern(count, 42));
    }
  }
}

TEST_P(DeviceTransportTest, LongMessagesCrossInBothDirections) {
  if (alone()) return;
  const std::size_t count = 20003;
  const OnDevice forward(pattern(count, rank())), backward(pattern(count, 100 + rank()));
  const OnDevice from_previous(Values(count, 0)), from_next(Values(count, 0));
  const std::array<Send, 2> sends{{{forward.bytes(), next()}, {backward.bytes(), previous()}}};
  const std::array<Receive, 2> receives{
      {{from_previous.bytes(), previous()}, {from_next.bytes(), next()}}};
  transport_->start(sends, receives)->wait();
  EXPECT_TRUE(from_previous.values() == pattern(count, previous()));
  EXPECT_TRUE(from_next.values() == pattern(count, 100 + next()));
}

TEST_P(DeviceTransportTest, ManyMessagesInBothDirectionsKeepTheirOrder) {
  if (alone()) return;
  // Three to each neighbour a call, of different lengths (some empty); all calls are under way before the first is waited for.
  constexpr std::size_t kMessages = 60;
  std::vector<OnDevice> forward, backward, from_previous, from_next;
  for (std::size_t i = 0; i < kMessages; ++i) {
    const auto salt = static_cast<std::size_t>(rank());
    forward.emplace_back(Values(i % 17, 100 * i + salt));
    backward.emplace_back(Values(i * 7 % 13, 100 * i + salt + 50));
    from_previous.emplace_back(Values(i % 17, 0));
    from_next.emplace_back(Values(i * 7 % 13, 0));
  }
  std::vector<std::unique_ptr<Ticket>> tickets;
  for (std::size_t i = 0; i < kMessages; i += 3) {
    std::vector<Send> sends;
    std::vector<Receive> receives;
    for (std::size_t j = i; j < i + 3; ++j) {
      sends.push_back({forward[j].bytes(), next()});
      receives.push_back({from_previous[j].bytes(), previous()});
    }
    for (std::size_t j = i; j < i + 3; ++j) {
      sends.push_back({backward[j].bytes(), previous()});
      receives.push_back({from_next[j].bytes(), next()});
    }
    tickets.push_back(transport_->start(sends, receives));
  }
  for (const auto& ticket : tickets) ticket->wait();
  for (std::size_t i = 0; i < kMessages; ++i) {
    const auto of = [&](int other) { return 100 * i + static_cast<std::size_t>(other); };
    EXPECT_EQ(from_previous[i].values(), Values(i % 17, of(previous()))) << "message " << i;
    EXPECT_EQ(from_next[i].values(), Values(i * 7 % 13, of(next()) + 50)) << "message " << i;
  }
}

TEST_P(DeviceTransportTest, TransfersOfOneCallDoNotWaitForEachOther) {
  // All ranks name the others in another order.
  std::vector<OnDevice> received;
  const OnDevice mine(pattern(300, rank()));
  std::vector<Send> sends;
  std::vector<Receive> receives;
  for (int other = 0; other < size(); ++other) received.emplace_back(Values(300, 0));
  for (int step = 1; step < size(); ++step) {
    const int other = (rank() + size() - step) % size();
    sends.push_back({mine.bytes(), other});
    receives.push_back({received[other].bytes(), other});
  }
  transport_->start(sends, receives)->wait();
  for (int other = 0; other < size(); ++other) {
    if (other == rank()) continue;
    EXPECT_TRUE(received[other].values() == pattern(300, other));
  }
}

// To each rank in turn one call a message, as sums are gathered; the last is waited for first.
TEST_P(DeviceTransportTest, CallsMayBeWaitedForInAnyOrder) {
  const OnDevice mine(pattern(300, rank()));
  std::vector<OnDevice> received;
  for (int i = 0; i < size(); ++i) received.emplace_back(Values(300, 0));
  std::vector<std::unique_ptr<Ticket>> tickets;
  for (int owner = 0; owner < size(); ++owner) {
    for (int from = 0; from < size(); ++from) {
      if (from == owner) continue;
      const Send send{mine.bytes(), owner};
      const Receive receive{received[from].bytes(), from};
      if (rank() == from) tickets.push_back(transport_->start({&send, 1}, {}));
      if (rank() == owner) tickets.push_back(transport_->start({}, {&receive, 1}));
    }
  }
  for (auto ticket = tickets.rbegin(); ticket != tickets.rend(); ++ticket) (*ticket)->wait();
  for (int from = 0; from < size(); ++from) {
    if (from == rank()) continue;
    EXPECT_TRUE(received[from].values() == pattern(300, from));
  }
}

TEST_P(DeviceTransportTest, StartDoesNotWaitForTheOtherSide) {
  if (alone()) return;
  const OnDevice data(pattern(5000, 7)), received(Values(5000, 0));
  std::unique_ptr<Ticket> ticket;
  if (rank() == 1) {
    const Receive receive{received.bytes(), 0};
    ticket = transport_->start({}, {&receive, 1});
    EXPECT_FALSE(ticket->done());
  }
  test_world().barrier();  // rank 0 has not called yet
  if (rank() == 0) {
    const Send send{data.bytes(), 1};
    ticket = transport_->start({&send, 1}, {});
  }
  if (ticket) ticket->wait();
  EXPECT_TRUE(rank() != 1 || received.values() == pattern(5000, 7));
}

TEST_P(DeviceTransportTest, DoneAloneDrivesATransferToItsEndBesideABroadcast) {
  if (alone()) return;
  const OnDevice sent(pattern(5000, rank())), received(Values(5000, 0)), word(pattern(1, 5));
  const Receive receive{received.bytes(), previous()};
  const Send send{sent.bytes(), next()};
  const auto ticket = transport_->start({&send, 1}, {&receive, 1});
  transport_->broadcast(word.bytes(), 0);
  while (!ticket->done()) {
  }
  EXPECT_TRUE(received.values() == pattern(5000, previous()));
}

TEST_P(DeviceTransportTest, ADroppedTicketIsWaitedFor) {
  if (alone()) return;
  const OnDevice sent(pattern(5000, rank())), received(Values(5000, 0));
  {
    const Send send{sent.bytes(), next()};
    const Receive receive{received.bytes(), previous()};
    const auto dropped = transport_->start({&send, 1}, {&receive, 1});
  }
  EXPECT_TRUE(received.values() == pattern(5000, previous()));
}

TEST_P(DeviceTransportTest, AStrangeRankAndOneselfAreErrors) {
  const OnDevice data(pattern(1, 0));
  for (const int stranger : {-1, size(), rank()}) {
    const Send send{data.bytes(), stranger};
    EXPECT_THROW((void)transport_->start({&send, 1}, {}), Error);
  }
  transport_->start({}, {})->wait();
}

class DeviceSum final : public Summand {
 public:
  explicit DeviceSum(const Values& values) : data_(values) {}
  std::span<std::byte> bytes() override { return data_.bytes(); }
  void add(Summand& other) override {
    Values sum = data_.values();
    const Values more = static_cast<DeviceSum&>(other).data_.values();
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] = 3 * sum[i] + more[i];  // order matters
    cudaMemcpy(data_.bytes().data(), sum.data(), data_.bytes().size(), cudaMemcpyDefault);
  }
  Values values() const { return data_.values(); }

 private:
  OnDevice data_;
};

TEST_P(DeviceTransportTest, TreeSumsAreTheSameForAnyNumberOfRanks) {
  constexpr int kParts = 7;
  const auto make = [] { return std::make_unique<DeviceSum>(Values(500, 0)); };
  const auto local = make_local_communicator();
  TreeSum alone_sum(*local, kParts, make);
  for (int part = 0; part < kParts; ++part) {
    alone_sum.add(part, std::make_unique<DeviceSum>(pattern(500, part)));
  }
  const Values want = static_cast<DeviceSum&>(*alone_sum.finish(0)).values();
  for (int owner = 0; owner < size(); ++owner) {
    TreeSum sum(*transport_, kParts, make);
    const PartRange mine = parts_of_rank(kParts, rank(), size());
    for (int part = mine.begin; part < mine.end; ++part) {
      sum.add(part, std::make_unique<DeviceSum>(pattern(500, part)));
    }
    const auto total = sum.finish(owner);
    ASSERT_EQ(total != nullptr, rank() == owner);
    if (!total) continue;
    EXPECT_TRUE(static_cast<DeviceSum&>(*total).values() == want);
  }
}

}  // namespace
}  // namespace roundhouse
