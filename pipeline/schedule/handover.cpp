#include "pipeline/schedule/handover.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/error.h"
#include "comm/host/backoff.h"
#include "comm/watchdog.h"

namespace roundhouse {

namespace {

std::int64_t microseconds_since_1970() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::microseconds>(now).count();
}

// In the order in which they travel.
std::vector<std::span<std::byte>> shards_of(const StreamActivations& activations,
                                            PartRange shards) {
  std::vector<std::span<std::byte>> all;
  for (const auto& stream : activations.all()) {
    for (int shard = shards.begin; stream.activations && shard < shards.end; ++shard) {
      all.push_back(stream.activations->bytes(shard));
    }
  }
  return all;
}

}  // namespace

void Handover::send(StreamActivations activations, PartRange shards) {
  finish();
  sending_ = std::move(activations);
  header_ = {kActivations, microseconds_since_1970()};
  std::vector<Send> sends{{std::as_bytes(std::span(&header_, 1)), mesh_.next_rank()}};
  if (Transport* devices = mesh_.device_chain()) {
    relay_ = std::make_unique<RelaySender>(RelayLink{mesh_.chain(), *devices, memory_},
                                           mesh_.stage() + 1);
    for (const std::span<std::byte> shard : shards_of(sending_, shards)) relay_->add(shard);
  } else {
    for (const std::span<std::byte> shard : shards_of(sending_, shards)) {
      sends.push_back({shard, mesh_.next_rank()});
    }
  }
  ticket_ = mesh_.world().start(sends, {});
  progress();
}

void Handover::send_failed() { send_header(kFailed); }

void Handover::send_stop() {
  if (stop_sent_) return;
  stop_sent_ = true;
  send_header(kStopped);
}

void Handover::send_header(std::int64_t kind) {
  finish();
  header_ = {kind, microseconds_since_1970()};
  ticket_ = mesh_.world().start(
      std::vector<Send>{{std::as_bytes(std::span(&header_, 1)), mesh_.next_rank()}}, {});
}

Handover::Arrival Handover::receive(const StreamActivations& into, PartRange shards) {
  if (upstream_stopped_) return Arrival::kStopped;
  const Header header = receive_header();
  upstream_stopped_ = header.kind == kStopped;
  if (upstream_stopped_) return Arrival::kStopped;
  if (header.kind == kFailed) return Arrival::kFailed;
  require(header.kind == kActivations, "a stage received something else than activations");
  const std::vector<std::span<std::byte>> all = shards_of(into, shards);
  const Watchdog::Waiting waiting(&monitor_.watchdog());
  if (Transport* devices = mesh_.device_chain()) {
    receive_relayed({mesh_.chain(), *devices, memory_}, mesh_.stage() - 1, all);
  } else {
    std::vector<Receive> receives;
    for (const std::span<std::byte> shard : all) receives.push_back({shard, mesh_.previous_rank()});
    mesh_.world().start({}, receives)->wait();
  }
  const std::int64_t passed = microseconds_since_1970() - header.sent;
  seconds_on_its_way_ = 1e-6 * static_cast<double>(std::max<std::int64_t>(0, passed));
  return Arrival::kActivations;
}

void Handover::progress() {
  const bool relayed = !relay_ || relay_->done();
  if (ticket_ && relayed && ticket_->done()) release();
}

void Handover::finish() {
  const Watchdog::Waiting waiting(&monitor_.watchdog());
  if (relay_) relay_->wait();
  if (ticket_) ticket_->wait();
  release();
}

Handover::Header Handover::receive_header() {
  const Watchdog::Waiting waiting(&monitor_.watchdog());
  Header header;
  const Receive receive{std::as_writable_bytes(std::span(&header, 1)), mesh_.previous_rank()};
  const auto ticket = mesh_.world().start({}, {&receive, 1});
  // The stage before may be at work for long: what this one still sends moves on meanwhile.
  for (Backoff backoff(0); !ticket->done(); backoff.pause()) progress();
  return header;
}

void Handover::release() {
  ticket_.reset();
  relay_.reset();
  sending_ = {};
}

}  // namespace roundhouse
