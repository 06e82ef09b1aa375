#include "comm/communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <numeric>
#include <string>

#include "base/error.h"
#include "comm/host/mpi_communicator.h"
#include "tests/comm/mpi_world.h"

namespace roundhouse {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

template <class T>
std::span<const std::byte> in(const T& items) {
  return std::as_bytes(std::span(items));
}
template <class T>
std::span<std::byte> out(T& items) {
  return std::as_writable_bytes(std::span(items));
}

std::vector<int> ints_of(const std::vector<std::byte>& bytes) {
  std::vector<int> ints(bytes.size() / sizeof(int));
  std::ranges::copy(bytes, out(ints).begin());
  return ints;
}

std::vector<std::uint64_t> pattern(std::size_t count, int salt) {
  std::vector<std::uint64_t> values(count);
  for (std::size_t i = 0; i < count; ++i) {
    values[i] = (i + 1) * 0x9e3779b97f4a7c15u + static_cast<std::uint64_t>(salt);
  }
  return values;
}

constexpr std::size_t kLong = (1 << 20) + 3;  // of uint64_t: three pieces, far over the eager limit

// What every communicator promises, whatever moves the bytes. "pieces" is MPI cutting messages
// every 24 bytes.
class CommunicatorTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (GetParam() == "local") {
      comm_ = make_local_communicator();
    } else if (test_world().size() == 1 && !started_by_launcher()) {
      GTEST_SKIP() << "not under mpirun";
    } else {
      comm_ = GetParam() == "pieces" ? make_mpi_communicator(24) : make_mpi_communicator();
    }
  }
  int rank() const { return comm_->rank(); }
  int size() const { return comm_->size(); }
  int next() const { return (rank() + 1) % size(); }
  int previous() const { return (rank() + size() - 1) % size(); }

  void exchange(std::vector<Send> sends, std::vector<Receive> receives) {
    comm_->start(sends, receives)->wait();
  }

  std::unique_ptr<Communicator> comm_;
};
INSTANTIATE_TEST_SUITE_P(All, CommunicatorTest, testing::Values("local", "mpi", "pieces"),
                         [](const auto& test) { return test.param; });

TEST_P(CommunicatorTest, BroadcastCopiesTheRootWhicheverItIs) {
  for (int root = 0; root < size(); ++root) {
    std::vector<int> values(100, rank() == root ? 42 + root : -1);
    comm_->broadcast(out(values), root);
    EXPECT_EQ(values, std::vector<int>(100, 42 + root));
  }
  comm_->broadcast({}, 0);
}

TEST_P(CommunicatorTest, GatherGivesRootTheBytesOfEachRankInOrder) {
  for (int root = 0; root < size(); ++root) {
    const std::vector<int> mine(static_cast<std::size_t>(3 * rank()), rank());  // rank 0 has none
    const auto all = comm_->gather(in(mine), root);
    if (rank() != root) {
      EXPECT_TRUE(all.empty());
      continue;
    }
    ASSERT_EQ(all.size(), static_cast<std::size_t>(size()));
    for (int r = 0; r < size(); ++r) {
      EXPECT_EQ(ints_of(all[r]), std::vector<int>(static_cast<std::size_t>(3 * r), r));
    }
  }
}

TEST_P(CommunicatorTest, AllGatherGivesEveryRankTheBytesOfEach) {
  const std::vector<int> mine(static_cast<std::size_t>(size() - rank()), 10 + rank());
  const auto all = comm_->all_gather(in(mine));
  ASSERT_EQ(all.size(), static_cast<std::size_t>(size()));
  for (int r = 0; r < size(); ++r) {
    EXPECT_EQ(ints_of(all[r]), std::vector<int>(static_cast<std::size_t>(size() - r), 10 + r));
  }
}

TEST_P(CommunicatorTest, IntegerReductionsAreExactBeyondTheRangeOfDoubles) {
  const std::int64_t big = (std::int64_t{1} << 60) + 1;
  EXPECT_EQ(comm_->all_reduce_sum(big * (rank() == 0) + rank()), big + size() * (size() - 1) / 2);
  EXPECT_EQ(comm_->all_reduce_max(-5 + rank()), -5 + size() - 1);
  EXPECT_EQ(comm_->all_reduce_min(-5 - rank()), -5 - (size() - 1));
}

TEST_P(CommunicatorTest, RingExchangePassesEachValueAllTheWayRound) {
  std::array<int, 2> travelling{rank(), 0};
  for (int step = 0; step < size(); ++step) {
    std::array<int, 2> arriving{};
    exchange({{in(travelling), next()}}, {{out(arriving), previous()}});
    travelling = {arriving[0], arriving[1] + 1};
  }
  EXPECT_THAT(travelling, ElementsAre(rank(), size()));
}

TEST_P(CommunicatorTest, ARankSendsToItself) {
  const std::vector<std::uint64_t> sent = pattern(1000, rank());
  std::vector<std::uint64_t> received(sent.size());
  exchange({{in(sent), rank()}}, {{out(received), rank()}});
  EXPECT_EQ(received, sent);
}

TEST_P(CommunicatorTest, SendAndReceiveMayStartInSeparateCalls) {
  const std::array<int, 1> sent{7 + rank()};
  std::array<int, 1> received{};
  const Receive receive{out(received), previous()};
  const auto receiving = comm_->start({}, {&receive, 1});
  const Send send{in(sent), next()};
  const auto sending = comm_->start({&send, 1}, {});
  sending->wait();
  receiving->wait();
  EXPECT_TRUE(receiving->done());
  EXPECT_EQ(received[0], 7 + previous());
}

TEST_P(CommunicatorTest, ManyMessagesBetweenAPairKeepTheirOrder) {
  // Sent two a call, received three a call, of different lengths: calls need not be cut alike.
  constexpr std::size_t kMessages = 120;
  std::vector<std::vector<int>> sent, received;
  for (std::size_t i = 0; i < kMessages; ++i) {
    sent.emplace_back(1 + i % 17, static_cast<int>(i) * 100 + rank());
    received.emplace_back(1 + i % 17, -1);
  }
  std::vector<std::unique_ptr<Ticket>> tickets;
  for (std::size_t i = 0; i < kMessages; i += 2) {
    const std::array<Send, 2> sends{{{in(sent[i]), next()}, {in(sent[i + 1]), next()}}};
    tickets.push_back(comm_->start(sends, {}));
  }
  for (std::size_t i = 0; i < kMessages; i += 3) {
    const std::array<Receive, 3> receives{{{out(received[i]), previous()},
                                           {out(received[i + 1]), previous()},
                                           {out(received[i + 2]), previous()}}};
    tickets.push_back(comm_->start({}, receives));
  }
  for (const auto& ticket : tickets) ticket->wait();
  for (std::size_t i = 0; i < kMessages; ++i) {
    EXPECT_EQ(received[i], std::vector<int>(1 + i % 17, static_cast<int>(i) * 100 + previous()))
        << "message " << i;
  }
}

TEST_P(CommunicatorTest, EmptyMessagesArriveInTheirPlace) {
  const std::array<int, 1> before{1}, after{2};
  std::array<int, 1> first{}, last{};
  exchange({{in(before), next()}, {{}, next()}, {in(after), next()}},
           {{out(first), previous()}, {{}, previous()}, {out(last), previous()}});
  EXPECT_EQ(first[0], 1);
  EXPECT_EQ(last[0], 2);
}

TEST_P(CommunicatorTest, NothingToTransferIsDone) {
  const auto ticket = comm_->start({}, {});
  EXPECT_TRUE(ticket->done());
  ticket->wait();
}

TEST_P(CommunicatorTest, LongMessagesCrossInBothDirections) {
  const std::size_t count = GetParam() == "pieces" ? 4096 : kLong;
  const auto forward = pattern(count, rank()), backward = pattern(count, 100 + rank());
  std::vector<std::uint64_t> from_previous(count), from_next(count);
  exchange({{in(forward), next()}, {in(backward), previous()}},
           {{out(from_previous), previous()}, {out(from_next), next()}});
  EXPECT_TRUE(from_previous == pattern(count, previous()));
  EXPECT_TRUE(from_next == pattern(count, 100 + next()));
}

TEST_P(CommunicatorTest, DoneAloneDrivesALongTransferToItsEnd) {
  const std::size_t count = GetParam() == "pieces" ? 4096 : kLong;
  const auto sent = pattern(count, rank());
  std::vector<std::uint64_t> received(count);
  const Send send{in(sent), next()};
  const Receive receive{out(received), previous()};
  const auto ticket = comm_->start({&send, 1}, {&receive, 1});
  while (!ticket->done()) {
  }
  EXPECT_TRUE(received == pattern(count, previous()));
}

TEST_P(CommunicatorTest, ADroppedTicketIsWaitedFor) {
  const std::size_t count = GetParam() == "pieces" ? 4096 : kLong;
  const auto sent = pattern(count, rank());
  std::vector<std::uint64_t> received(count);
  {
    const Send send{in(sent), next()};
    const Receive receive{out(received), previous()};
    const auto dropped = comm_->start({&send, 1}, {&receive, 1});
  }
  EXPECT_TRUE(received == pattern(count, previous()));
}

TEST_P(CommunicatorTest, CollectivesPassPendingMessagesBy) {
  const std::array<int, 1> sent{rank()};
  std::array<int, 1> received{-1};
  const Receive receive{out(received), previous()};
  const auto receiving = comm_->start({}, {&receive, 1});
  comm_->barrier();
  EXPECT_EQ(comm_->gather(in(std::array{5}), 0).size(),
            rank() == 0 ? static_cast<std::size_t>(size()) : 0);
  EXPECT_EQ(received[0], -1);
  comm_->barrier();  // all have looked
  const Send send{in(sent), next()};
  comm_->start({&send, 1}, {})->wait();
  receiving->wait();
  EXPECT_EQ(received[0], previous());
}

// Expects that receiving `bytes` bytes where eight come is an error that says so.
void expect_size_error(Communicator& comm, std::size_t bytes, int to, int from) {
  const std::array<std::uint64_t, 1> sent{1};
  std::vector<std::byte> received(bytes);
  const Send send{in(sent), to};
  const Receive receive{received, from};
  std::unique_ptr<Ticket> sending;
  if (to != comm.rank()) sending = comm.start({&send, 1}, {});
  try {
    comm.start(std::span(&send, sending ? 0 : 1), {&receive, 1})->wait();
    ADD_FAILURE() << "no exception for a message of 8 bytes received as " << bytes;
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr(std::to_string(bytes) + " bytes from"));
    EXPECT_THAT(e.what(), HasSubstr("rank " + std::to_string(comm.rank())));
  }
  if (sending) sending->wait();
}

TEST_P(CommunicatorTest, AMessageOfAnotherSizeIsAnError) {
  for (const std::size_t bytes : {0u, 3u, 17u}) {
    expect_size_error(*comm_, bytes, next(), previous());
    comm_->barrier();
  }
}

TEST_P(CommunicatorTest, AMessageOfAnotherSizeToOneselfIsAnError) {
  for (const std::size_t bytes : {0u, 3u, 17u}) expect_size_error(*comm_, bytes, rank(), rank());
}

TEST_P(CommunicatorTest, WaitingForAMessageToOneselfThatWasNotStartedIsAnError) {
  std::array<int, 1> value{};
  const Receive receive{out(value), rank()};
  EXPECT_THROW(comm_->start({}, {&receive, 1})->wait(), Error);
  const Send send{in(value), rank()};
  EXPECT_THROW(comm_->start({&send, 1}, {})->wait(), Error);
  // Both tickets have withdrawn their half: this pair meets nothing else.
  comm_->start({&send, 1}, {&receive, 1})->wait();
}

TEST_P(CommunicatorTest, AStrangeRankIsAnError) {
  const std::array<int, 1> sent{1};
  for (const int stranger : {-1, size()}) {
    const Send send{in(sent), stranger};
    EXPECT_THROW((void)comm_->start({&send, 1}, {}), Error);
  }
}

TEST_P(CommunicatorTest, SplitOrdersByKeyAndKeepsGroupsApart) {
  const auto reversed = comm_->split(0, -rank());
  EXPECT_EQ(reversed->size(), size());
  EXPECT_EQ(reversed->rank(), size() - 1 - rank());

  const auto half = comm_->split(rank() % 2, 0);
  EXPECT_EQ(half->size(), (size() + 1 - rank() % 2) / 2);
  EXPECT_EQ(half->rank(), rank() / 2);
  std::int64_t want = 0;
  for (int r = rank() % 2; r < size(); r += 2) want += r;
  EXPECT_EQ(half->all_reduce_sum(rank()), want);
}

TEST_P(CommunicatorTest, RowsAndColumnsOfAMesh) {
  const int rows = size() % 2 == 0 ? 2 : 1, columns = size() / rows;
  const int my_row = rank() / columns, my_column = rank() % columns;
  const auto row = comm_->split(my_row, my_column), column = comm_->split(my_column, my_row);
  ASSERT_EQ(row->size(), columns);
  ASSERT_EQ(column->size(), rows);
  EXPECT_EQ(row->rank(), my_column);
  EXPECT_EQ(column->rank(), my_row);

  // A value given down its column and then along the row reaches all: 10 x (row of origin) + column
  // of origin.
  std::array<int, 1> value{10 * my_row + my_column};
  column->broadcast(out(value), rows - 1);
  EXPECT_EQ(value[0], 10 * (rows - 1) + my_column);
  row->broadcast(out(value), 0);
  EXPECT_EQ(value[0], 10 * (rows - 1));

  // Both groups at once, and messages of one are not seen by the other.
  const std::array<int, 2> sent{my_row, my_column};
  std::array<int, 2> from_row{}, from_column{};
  const Send along{in(sent), (row->rank() + 1) % columns},
      down{in(sent), (column->rank() + 1) % rows};
  const Receive by_row{out(from_row), (row->rank() + columns - 1) % columns};
  const Receive by_column{out(from_column), (column->rank() + rows - 1) % rows};
  const auto a = column->start({&down, 1}, {&by_column, 1});
  const auto b = row->start({&along, 1}, {&by_row, 1});
  b->wait();
  a->wait();
  EXPECT_THAT(from_row, ElementsAre(my_row, (my_column + columns - 1) % columns));
  EXPECT_THAT(from_column, ElementsAre((my_row + rows - 1) % rows, my_column));
}

TEST(LaunchSessionTest, KnowsTheRanksOfThisNode) {
  // The tests run on one node.
  EXPECT_EQ(test_session().local_rank(), test_world().rank());
  EXPECT_EQ(test_session().local_size(), test_world().size());
}

}  // namespace
}  // namespace roundhouse
