// Activations of batches from rank to rank, while all of them compute.
//
// MPI moves a long message only while both ends look at it. So a rank that sends waits until all of it has arrived, and whoever waits
// takes what the others send it meanwhile, however much that is: nobody waits for one that waits. A rank that computes looks between
// two batches. Every rank must know beforehand what each other one will send it, and in which order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <vector>

#include "comm/communicator.h"
#include "stages/flow/activations.h"

namespace roundhouse {

// What a rank has sent to another one, for people. Seconds by std::chrono::steady_clock.
struct SentBatches {
  std::int64_t messages = 0, bytes = 0;
  double begin = 0, end = 0;
};

class BatchMessages {
 public:
  // What arrives is put into `inbox`, as the shard `key`.
  struct Expected {
    int key;
    std::int64_t rows;
  };
  BatchMessages(Communicator& ranks, Activations& inbox) : ranks_(ranks), inbox_(inbox) {}

  // By the rank that it comes from. Precondition: nothing that was expected before is still to come.
  void expect(std::map<int, std::deque<Expected>> from);

  // Returns when it has arrived.
  void send(std::span<const std::byte> rows, int to);
  // In place of a batch of this size, and of all that come after it.
  void send_stop(std::span<const std::byte> rows, int to);
  // Waits for it. False: its sender has stopped.
  bool await(int key, int from);
  bool look();                                        // has anything moved?
  bool stopped() const { return !stopped_.empty(); }  // some rank has said so
  void drain();  // takes and forgets what still comes, until all senders are done or have stopped

  const std::map<int, SentBatches>& sent() const { return sent_; }  // by receiver

 private:
  using Pieces = std::deque<std::unique_ptr<Ticket>>;  // of one message, which are not over yet
  struct Source {
    std::deque<Expected> expected;  // the first is under way
    std::byte flag{};               // comes before the rows
    Pieces arrives;
  };
  void post(int from, Source& source);
  void transfer(std::span<const std::byte> rows, int to, std::byte flag);

  Communicator& ranks_;
  Activations& inbox_;
  std::map<int, Source> sources_;
  std::set<int> arrived_;  // keys
  std::set<int> stopped_;  // ranks
  std::map<int, SentBatches> sent_;
};

}  // namespace roundhouse
