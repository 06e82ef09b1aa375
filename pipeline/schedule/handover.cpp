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

}  // namespace

void Handover::send(const std::vector<bool>& come,
                    std::vector<std::unique_ptr<Activations>> streams, PartRange shards) {
  finish();
  sending_ = std::move(streams);
  header_.clear();
  for (const bool comes : come) header_.push_back(comes ? kComes : kFailed);
  header_.push_back(microseconds_since_1970());
  std::vector<Send> sends{{std::as_bytes(std::span(header_)), mesh_.next_rank()}};
  if (Transport* devices = mesh_.device_chain(); devices && !sending_.empty())
    relay_ = std::make_unique<RelaySender>(RelayLink{mesh_.chain(), *devices, memory_},
                                           mesh_.stage() + 1);
  for (const auto& stream : sending_) {
    for (int shard = shards.begin; shard < shards.end; ++shard) {
      const std::span<std::byte> bytes = stream->bytes(shard);
      if (relay_) {
        relay_->add(bytes);
      } else {
        sends.push_back({bytes, mesh_.next_rank()});
      }
    }
  }
  ticket_ = mesh_.world().start(sends, {});
  progress();
}

void Handover::send_stop(std::size_t recipes) {
  if (stop_sent_) return;
  stop_sent_ = true;
  finish();
  header_.assign(recipes, kStopped);
  header_.push_back(microseconds_since_1970());
  ticket_ = mesh_.world().start(
      std::vector<Send>{{std::as_bytes(std::span(header_)), mesh_.next_rank()}}, {});
}

std::optional<std::vector<bool>> Handover::receive_header(std::size_t recipes) {
  if (upstream_stopped_) return std::nullopt;
  const Watchdog::Waiting waiting(&monitor_.watchdog());
  std::vector<std::int64_t> header(recipes + 1);
  const Receive receive{std::as_writable_bytes(std::span(header)), mesh_.previous_rank()};
  const auto ticket = mesh_.world().start({}, {&receive, 1});
  // The stage before may be at work for long: what this one still sends moves on meanwhile.
  for (Backoff backoff(0); !ticket->done(); backoff.pause()) progress();
  sent_at_ = header.back();
  header.pop_back();
  upstream_stopped_ = std::ranges::find(header, kStopped) != header.end();
  if (upstream_stopped_) return std::nullopt;
  std::vector<bool> come;
  for (const std::int64_t each : header) {
    require(each == kComes || each == kFailed, "a stage received something else than activations");
    come.push_back(each == kComes);
  }
  return come;
}

void Handover::receive(const std::vector<Activations*>& into, PartRange shards) {
  if (into.empty()) return;
  std::vector<std::span<std::byte>> all;
  for (Activations* stream : into) {
    for (int shard = shards.begin; shard < shards.end; ++shard) all.push_back(stream->bytes(shard));
  }
  const Watchdog::Waiting waiting(&monitor_.watchdog());
  if (Transport* devices = mesh_.device_chain()) {
    receive_relayed({mesh_.chain(), *devices, memory_}, mesh_.stage() - 1, all);
  } else {
    std::vector<Receive> receives;
    for (const std::span<std::byte> shard : all) receives.push_back({shard, mesh_.previous_rank()});
    mesh_.world().start({}, receives)->wait();
  }
  const std::int64_t passed = microseconds_since_1970() - sent_at_;
  seconds_on_its_way_ = 1e-6 * static_cast<double>(std::max<std::int64_t>(0, passed));
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

void Handover::release() {
  ticket_.reset();
  relay_.reset();
  sending_.clear();
}

}  // namespace roundhouse
