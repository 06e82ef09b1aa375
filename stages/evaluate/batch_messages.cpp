#include "stages/evaluate/batch_messages.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/error.h"
#include "comm/host/backoff.h"
#include "comm/watchdog.h"

namespace roundhouse {
namespace {

constexpr std::byte kBatch{0}, kStop{1};
// Whether a message moves is seen piece by piece: while it does, nobody sleeps.
constexpr std::size_t kPieceBytes = std::size_t{512} << 10;

template <class Bytes, class Take>
void for_each_piece(std::span<Bytes> bytes, const Take& take) {
  for (std::size_t at = 0; at < bytes.size(); at += kPieceBytes)
    take(bytes.subspan(at, std::min(kPieceBytes, bytes.size() - at)));
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

void BatchMessages::expect(std::map<int, std::deque<Expected>> from) {
  require(arrived_.empty(), "batches arrived that nobody took");
  sources_.clear();
  for (auto& [rank, expected] : from) sources_[rank].expected = std::move(expected);
  for (auto& [rank, source] : sources_) post(rank, source);
}

void BatchMessages::post(int from, Source& source) {
  if (source.expected.empty()) return;
  const Expected& next = source.expected.front();
  inbox_.reserve(next.key, next.rows);
  const auto receive = [&](std::span<std::byte> piece) {
    const Receive one{piece, from};
    source.arrives.push_back(ranks_.start({}, {&one, 1}));
  };
  receive({&source.flag, 1});
  for_each_piece(inbox_.bytes(next.key), receive);
}

bool BatchMessages::look() {
  bool moved = false;
  for (auto& [rank, source] : sources_) {
    while (!source.arrives.empty() && source.arrives.front()->done()) {
      moved = true;
      source.arrives.pop_front();
      if (!source.arrives.empty()) continue;
      const int key = source.expected.front().key;
      source.expected.pop_front();
      if (source.flag == kStop) {
        inbox_.release(key);
        stopped_.insert(rank);
        source.expected.clear();
      } else {
        arrived_.insert(key);
        post(rank, source);
      }
    }
  }
  return moved;
}

bool BatchMessages::await(int key, int from) {
  const Watchdog::Waiting waiting(Watchdog::of_this_thread());
  for (Backoff backoff(kPieceBytes);; backoff.pause()) {
    if (look()) backoff.restart();
    if (arrived_.erase(key) > 0) return true;
    if (stopped_.contains(from)) return false;
  }
}

void BatchMessages::send(std::span<const std::byte> rows, int to) {
  const double begin = now();
  transfer(rows, to, kBatch);
  SentBatches& sent = sent_[to];
  if (sent.messages == 0) sent.begin = begin;
  sent.end = now();
  ++sent.messages;
  sent.bytes += std::ssize(rows);
}

void BatchMessages::send_stop(std::span<const std::byte> rows, int to) {
  transfer(rows, to, kStop);
}

void BatchMessages::transfer(std::span<const std::byte> rows, int to, std::byte flag) {
  const Watchdog::Waiting waiting(Watchdog::of_this_thread());
  Pieces pieces;
  const auto send = [&](std::span<const std::byte> piece) {
    const Send one{piece, to};
    pieces.push_back(ranks_.start({&one, 1}, {}));
  };
  send({&flag, 1});
  for_each_piece(rows, send);
  for (Backoff backoff(kPieceBytes); !pieces.empty(); backoff.pause()) {
    bool moved = look();
    for (; !pieces.empty() && pieces.front()->done(); moved = true) pieces.pop_front();
    if (moved) backoff.restart();
  }
}

void BatchMessages::drain() {
  const Watchdog::Waiting waiting(Watchdog::of_this_thread());
  const auto comes = [](const auto& source) { return !source.second.arrives.empty(); };
  for (Backoff backoff(kPieceBytes); std::ranges::any_of(sources_, comes); backoff.pause()) {
    if (look()) backoff.restart();
    for (const int key : std::exchange(arrived_, {})) inbox_.release(key);
  }
}

}  // namespace roundhouse
