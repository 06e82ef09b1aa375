#include "pipeline/handover.h"

#include <utility>

#include "base/error.h"
#include "comm/watchdog.h"

namespace roundhouse {

namespace {

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
  header_ = kActivations;
  std::vector<Send> sends{{std::as_bytes(std::span(&header_, 1)), mesh_.next_rank()}};
  if (Transport* devices = mesh_.device_world()) {
    relay_ = std::make_unique<RelaySender>(*devices, memory_, mesh_.next_rank());
    for (const std::span<std::byte> shard : shards_of(sending_, shards)) relay_->add(shard);
  } else {
    for (const std::span<std::byte> shard : shards_of(sending_, shards)) {
      sends.push_back({shard, mesh_.next_rank()});
    }
  }
  ticket_ = mesh_.world().start(sends, {});
  progress();
}

void Handover::send_stop() {
  if (stop_sent_) return;
  finish();
  stop_sent_ = true;
  header_ = kStopped;
  ticket_ = mesh_.world().start(
      std::vector<Send>{{std::as_bytes(std::span(&header_, 1)), mesh_.next_rank()}}, {});
}

bool Handover::receive(const StreamActivations& into, PartRange shards) {
  if (upstream_stopped_) return false;
  std::int64_t header = 0;
  receive_all({{std::as_writable_bytes(std::span(&header, 1)), mesh_.previous_rank()}});
  upstream_stopped_ = header == kStopped;
  if (upstream_stopped_) return false;
  require(header == kActivations, "a stage received something else than activations");
  const std::vector<std::span<std::byte>> all = shards_of(into, shards);
  if (Transport* devices = mesh_.device_world()) {
    const Watchdog::Waiting waiting(&monitor_.watchdog());
    receive_relayed(*devices, memory_, mesh_.previous_rank(), all);
  } else {
    std::vector<Receive> receives;
    for (const std::span<std::byte> shard : all) receives.push_back({shard, mesh_.previous_rank()});
    receive_all(receives);
  }
  return true;
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

void Handover::receive_all(const std::vector<Receive>& receives) {
  const Watchdog::Waiting waiting(&monitor_.watchdog());
  mesh_.world().start({}, receives)->wait();
}

void Handover::release() {
  ticket_.reset();
  relay_.reset();
  sending_ = {};
}

}  // namespace roundhouse
