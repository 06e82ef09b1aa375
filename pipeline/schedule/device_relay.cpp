#include "pipeline/schedule/device_relay.h"

#include <algorithm>
#include <vector>

#include "comm/host/backoff.h"

namespace roundhouse {
namespace {

template <class Bytes, class Take>
void cut(std::span<Bytes> bytes, std::int64_t piece_bytes, const Take& take) {
  const auto step = static_cast<std::size_t>(piece_bytes);
  for (std::size_t at = 0; at < bytes.size(); at += step) {
    take(bytes.subspan(at, std::min(step, bytes.size() - at)));
  }
}

std::span<std::byte> front(Tensor& buffer, std::size_t bytes) {
  return {static_cast<std::byte*>(buffer.view().data), bytes};
}

}  // namespace

RelaySender::RelaySender(const RelayLink& link, int to, std::int64_t piece_bytes)
    : link_(link), to_(to), piece_bytes_(piece_bytes) {
  for (Slot& slot : slots_) slot.buffer = Tensor(link_.memory, DType::kU8, 1, piece_bytes);
  const Receive receive{{&ready_, 1}, to_};
  ready_ticket_ = link_.hosts.start({}, {&receive, 1});
}

void RelaySender::add(std::span<const std::byte> host) {
  cut(host, piece_bytes_, [&](std::span<const std::byte> piece) { pieces_.push_back(piece); });
}

bool RelaySender::done() {
  if (ready_ticket_ && !ready_ticket_->done()) return false;
  ready_ticket_.reset();
  bool idle = true;
  for (Slot& slot : slots_) {
    if (slot.ticket && slot.ticket->done()) slot.ticket.reset();
    if (!slot.ticket && !pieces_.empty()) {
      const std::span<std::byte> device = front(slot.buffer, pieces_.front().size());
      link_.memory.upload(pieces_.front(), device.data());
      link_.memory.sync();
      const Send send{device, to_};
      slot.ticket = link_.devices.start({&send, 1}, {});
      pieces_.pop_front();
    }
    idle = idle && !slot.ticket;
  }
  return idle && pieces_.empty();
}

void RelaySender::wait() {
  Backoff backoff(static_cast<std::size_t>(piece_bytes_));
  for (std::size_t left = pieces_.size(); !done(); left = pieces_.size()) {
    if (pieces_.size() < left) backoff.restart();
    backoff.pause();
  }
}

void receive_relayed(const RelayLink& link, int from, std::span<const std::span<std::byte>> host,
                     std::int64_t piece_bytes) {
  struct Slot {
    Tensor buffer;
    std::unique_ptr<Ticket> ticket;
  };
  std::array<Slot, 2> slots;
  for (Slot& slot : slots) slot.buffer = Tensor(link.memory, DType::kU8, 1, piece_bytes);
  link.memory.sync();  // what the buffers' memory was used for before

  std::vector<std::span<std::byte>> pieces;
  for (const std::span<std::byte> bytes : host) {
    cut(bytes, piece_bytes, [&](std::span<std::byte> piece) { pieces.push_back(piece); });
  }
  const auto post = [&](std::size_t i) {
    if (i >= pieces.size()) return;
    Slot& slot = slots[i % slots.size()];
    const Receive receive{front(slot.buffer, pieces[i].size()), from};
    slot.ticket = link.devices.start({}, {&receive, 1});
  };
  const std::byte ready{};
  const Send send{{&ready, 1}, from};
  link.hosts.start({&send, 1}, {})->wait();
  for (std::size_t i = 0; i < slots.size(); ++i) post(i);
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    Slot& slot = slots[i % slots.size()];
    slot.ticket->wait();
    link.memory.download(slot.buffer.view().data, pieces[i]);
    post(i + slots.size());
  }
}

}  // namespace roundhouse
