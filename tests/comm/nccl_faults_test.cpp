// What the NCCL transport does when something goes wrong, and what it asks of a device, on an imitation of NCCL.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdlib>
#include <vector>

#include "base/error.h"
#include "comm/nccl/nccl_transport.h"
#include "nccl_emulation.h"
#include "tests/comm/mpi_world.h"

namespace roundhouse {
namespace {

using nccl_emulation::Order;
using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

class NcclFaultsTest : public testing::Test {
 protected:
  void SetUp() override {
    if (world_.size() == 1) GTEST_SKIP() << "needs another rank";
  }
  void TearDown() override {
    nccl_emulation::break_network_at_kernel(0);
    nccl_emulation::let_connect(true);
    nccl_emulation::set_order(Order::kLaunched);
    world_.barrier();
    EXPECT_EQ(nccl_emulation::communicators(), 0);
  }

  DeviceGroup group(const std::string& name) const {
    return {.name = name, .peers = all_peers(world_), .broadcasts = true};
  }
  std::unique_ptr<Transport> connect(const std::string& name) const {
    return make_nccl_transport(world_, group(name));
  }
  std::unique_ptr<Transport> connect_in_2_seconds(const std::string& name) const {
    DeviceGroup hasty = group(name);
    hasty.deadline = std::chrono::seconds(2);
    return make_nccl_transport(world_, hasty);
  }
  // To the next rank and from the one before.
  std::unique_ptr<Ticket> around(Transport& transport, std::vector<std::byte>& sent,
                                 std::vector<std::byte>& received) const {
    const Send send{sent, (world_.rank() + 1) % world_.size()};
    const Receive receive{received, (world_.rank() + world_.size() - 1) % world_.size()};
    return transport.start({&send, 1}, {&receive, 1});
  }
  std::string next() const { return "rank " + std::to_string((world_.rank() + 1) % world_.size()); }
  bool last() const { return world_.rank() == world_.size() - 1; }

  Communicator& world_ = test_world();
  std::vector<std::byte> sent_ = std::vector<std::byte>(3000, std::byte{5});
  std::vector<std::byte> received_ = std::vector<std::byte>(3000);
};

TEST_F(NcclFaultsTest, ATransportIsOneCommunicatorHoweverManyRanksItConnects) {
  const int before = nccl_emulation::communicators_made();
  const auto transport = connect("everybody");
  around(*transport, sent_, received_)->wait();
  EXPECT_EQ(nccl_emulation::communicators_made(), before + 1);
  EXPECT_EQ(received_, sent_);
}

TEST_F(NcclFaultsTest, KernelsOfSeveralCommunicatorsAreOrderedByTheirLaunches) {
  EXPECT_STREQ(std::getenv("NCCL_LAUNCH_ORDER_IMPLICIT"), "1");
  const auto one = connect("one"), other = connect("other");
  std::vector<std::unique_ptr<Ticket>> tickets;
  std::vector<std::vector<std::byte>> received(20, std::vector<std::byte>(3000));
  for (std::size_t i = 0; i < received.size(); ++i) {
    tickets.push_back(around(i % 3 == 0 ? *one : *other, sent_, received[i]));
  }
  for (auto ticket = tickets.rbegin(); ticket != tickets.rend(); ++ticket) (*ticket)->wait();
  for (const auto& bytes : received) EXPECT_EQ(bytes, sent_);
}

TEST_F(NcclFaultsTest, AnErrorWhileAMessageMovesEndsTheWaitAndNamesThePeers) {
  const auto transport = connect("the team of stage 1");
  const int aborted = nccl_emulation::communicators_aborted();
  around(*transport, sent_, received_)->wait();
  nccl_emulation::break_network_at_kernel(1);
  const auto ticket = around(*transport, sent_, received_);
  EXPECT_THAT([&] { ticket->wait(); },
              ThrowsMessage<Error>(
                  AllOf(HasSubstr("network error"), HasSubstr("the team of stage 1"),
                        HasSubstr("sends to " + next()), HasSubstr("receives from rank "))));
  EXPECT_EQ(nccl_emulation::communicators_aborted(), aborted + 1);
  EXPECT_THROW((void)ticket->done(), Error);
  EXPECT_THROW((void)around(*transport, sent_, received_), Error);
}

TEST_F(NcclFaultsTest, AnErrorDuringABroadcastNamesItsRoot) {
  const auto transport = connect("the team");
  nccl_emulation::break_network_at_kernel(1);
  EXPECT_THAT(
      [&] { transport->broadcast(sent_, 1); },
      ThrowsMessage<Error>(AllOf(HasSubstr("network error"), HasSubstr("broadcast from rank 1"))));
}

// The kernel that never ends keeps the device from the other transport's, which knows of no error.
TEST_F(NcclFaultsTest, AnErrorOfOneTransportEndsTheWaitOnAnother) {
  const auto team = connect("the team"), chain = connect("the chain");
  const int aborted = nccl_emulation::communicators_aborted();
  std::vector<std::byte> received(3000);
  nccl_emulation::break_network_at_kernel(1);
  const auto broken = around(*chain, sent_, received);
  const auto whole = around(*team, sent_, received_);
  EXPECT_THAT([&] { whole->wait(); },
              ThrowsMessage<Error>(AllOf(HasSubstr("network error"), HasSubstr("of the chain"))));
  EXPECT_EQ(nccl_emulation::communicators_aborted(), aborted + 2);  // in one group
}

TEST_F(NcclFaultsTest, AnotherErrorAbortsWhatIsUnderWayInsteadOfWaitingForIt) {
  const int aborted = nccl_emulation::communicators_aborted();
  const auto go_wrong = [&] {
    const auto team = connect("the team"), chain = connect("the chain");
    const Receive receive{received_, (world_.rank() + 1) % world_.size()};  // nobody sends
    const auto ticket = team->start({}, {&receive, 1});
    EXPECT_FALSE(ticket->done());
    throw Error("the disk is full");
  };
  EXPECT_THAT(go_wrong, ThrowsMessage<Error>("the disk is full"));
  EXPECT_EQ(nccl_emulation::communicators_aborted(), aborted + 2);
}

TEST_F(NcclFaultsTest, ARankThatNeverComesIsNamedWhenTheTimeIsOver) {
  if (last()) return;
  const std::string missing = "rank " + std::to_string(world_.size() - 1);
  EXPECT_THAT([&] { connect_in_2_seconds("the team"); },
              ThrowsMessage<Error>(AllOf(HasSubstr("connecting the team"), HasSubstr("in 2 s"),
                                         HasSubstr(world_.rank() == 0 ? missing + " did not come"
                                                                      : "no word from rank 0"))));
}

TEST_F(NcclFaultsTest, AConnectionThatNeverStandsIsAnErrorWhenTheTimeIsOver) {
  nccl_emulation::let_connect(false);
  EXPECT_THAT([&] { connect_in_2_seconds("the team"); },
              ThrowsMessage<Error>(AllOf(HasSubstr("nothing came of connecting the team"),
                                         HasSubstr("in 2 s"), HasSubstr("NCCL_DEBUG=INFO"))));
}

TEST_F(NcclFaultsTest, AnErrorOfTheFirstMessagesIsOneOfConnecting) {
  nccl_emulation::break_network_at_kernel(1);
  EXPECT_THAT([&] { connect("the team"); },
              ThrowsMessage<Error>(AllOf(HasSubstr("network error"), HasSubstr("the team"))));
}

TEST_F(NcclFaultsTest, OnlyRanksThatWereConnectedTalk) {
  if (world_.size() < 3) return;
  // A chain: rank 0 and the last one do not know each other.
  DeviceGroup chain{.name = "the chain", .peers = {}};
  if (world_.rank() > 0) chain.peers.push_back(world_.rank() - 1);
  if (!last()) chain.peers.push_back(world_.rank() + 1);
  const auto transport = make_nccl_transport(world_, chain);
  const int stranger = last() ? 0 : world_.size() - 1;
  if (world_.rank() == 0 || last()) {
    const Send send{sent_, stranger};
    EXPECT_THROW((void)transport->start({&send, 1}, {}), Error);
  }
}

}  // namespace
}  // namespace roundhouse
