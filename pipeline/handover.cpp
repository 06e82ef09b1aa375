#include "pipeline/handover.h"

#include <utility>

#include "base/error.h"
#include "comm/watchdog.h"

namespace roundhouse {

void Handover::send(StreamActivations activations, PartRange shards) {
  finish();
  sending_ = std::move(activations);
  header_ = kActivations;
  std::vector<Send> sends{{std::as_bytes(std::span(&header_, 1)), mesh_.next_rank()}};
  for (const auto& stream : sending_.all()) {
    for (int shard = shards.begin; stream.activations && shard < shards.end; ++shard) {
      sends.push_back({stream.activations->bytes(shard), mesh_.next_rank()});
    }
  }
  ticket_ = mesh_.world().start(sends, {});
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
  std::vector<Receive> receives;
  for (const auto& stream : into.all()) {
    for (int shard = shards.begin; stream.activations && shard < shards.end; ++shard) {
      receives.push_back({stream.activations->bytes(shard), mesh_.previous_rank()});
    }
  }
  receive_all(receives);
  return true;
}

void Handover::progress() {
  if (ticket_ && ticket_->done()) release();
}

void Handover::finish() {
  if (ticket_) wait(*ticket_);
  release();
}

void Handover::wait(Ticket& ticket) {
  const Watchdog::Waiting waiting(&monitor_.watchdog());
  ticket.wait();
}

void Handover::receive_all(const std::vector<Receive>& receives) {
  const auto ticket = mesh_.world().start({}, receives);
  wait(*ticket);
}

void Handover::release() {
  ticket_.reset();
  sending_ = {};
}

}  // namespace roundhouse
