// Messages between the memories of emulated GPUs that know nothing of what is queued, as NCCL on a stream of its own: taken
// instead of comm/device/device_transport.cpp.
//
// A message reads what it sends when it is started. What it receives into is spoiled when it is started and filled when
// somebody waits, so that work which still used that memory, or uses it too early, gets NaN. Whoever changes either of the two
// meanwhile is found out, as is memory that the queue has not come to.
#include "comm/device/device_transport.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <exception>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"

namespace roundhouse {
namespace {

constexpr std::byte kSpoiled{0xff};  // NaN in every type of float

struct Sent {
  std::span<const std::byte> device;
  std::vector<std::byte> host;
};
struct Received {
  std::span<std::byte> device;
  std::vector<std::byte> host;
};

void check_place(std::span<const std::byte> device) {
  if (!emulation::on_device(device.data(), device.size())) {
    throw Error("emulation: a message of " + std::to_string(device.size()) +
                " bytes uses device memory that the queue has not allocated yet");
  }
}

class UnorderedTicket final : public Ticket {
 public:
  UnorderedTicket(Communicator& host, std::span<const Send> sends,
                  std::span<const Receive> receives) {
    std::vector<Send> host_sends;
    std::vector<Receive> host_receives;
    for (const Send& send : sends) {
      require(send.to != host.rank(), "a message between devices goes to another rank");
      check_place(send.data);
      sent_.push_back({send.data, {send.data.begin(), send.data.end()}});
      host_sends.push_back({sent_.back().host, send.to});
    }
    for (const Receive& receive : receives) {
      require(receive.from != host.rank(), "a message between devices comes from another rank");
      check_place(receive.data);
      std::ranges::fill(receive.data, kSpoiled);
      received_.push_back({receive.data, std::vector<std::byte>(receive.data.size())});
      host_receives.push_back({received_.back().host, receive.from});
    }
    ticket_ = host.start(host_sends, host_receives);
  }

  void wait() override {
    ticket_->wait();
    finish();
  }
  bool done() override {
    if (!ticket_->done()) return false;
    finish();
    return true;
  }

 private:
  void finish() {
    for (const Sent& message : std::exchange(sent_, {})) {
      if (std::ranges::equal(message.device, message.host)) continue;
      throw Error("emulation: " + std::to_string(message.device.size()) +
                  " bytes in device memory changed while they were sent");
    }
    for (const Received& message : std::exchange(received_, {})) {
      if (std::ranges::any_of(message.device, [](std::byte b) { return b != kSpoiled; })) {
        throw Error("emulation: " + std::to_string(message.device.size()) +
                    " bytes in device memory were written while they were received");
      }
      std::ranges::copy(message.host, message.device.begin());
    }
  }

  std::vector<Sent> sent_;
  std::vector<Received> received_;
  std::unique_ptr<Ticket> ticket_;  // before the host memory that it uses goes
};

class UnorderedTransport final : public Transport {
 public:
  explicit UnorderedTransport(Communicator& host) : host_(host.split(0, host.rank())) {}

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }

  std::unique_ptr<Ticket> start(std::span<const Send> sends,
                                std::span<const Receive> receives) override {
    return std::make_unique<UnorderedTicket>(*host_, sends, receives);
  }

  void broadcast(std::span<std::byte> data, int root) override {
    check_place(data);
    std::vector<std::byte> host(data.begin(), data.end());
    if (rank() != root) std::ranges::fill(data, kSpoiled);
    host_->broadcast(host, root);
    if (rank() != root) std::ranges::copy(host, data.begin());
  }

 private:
  std::unique_ptr<Communicator> host_;  // its own, so that messages meet nobody else's
};

}  // namespace

DeviceLink choose_device_link(Communicator& world) {
  std::string mine = emulation::current_gpu();
  if (mine.starts_with("MIG")) mine = "MIG";  // instances of one GPU
  std::vector<std::vector<std::byte>> gpus = world.all_gather(std::as_bytes(std::span(mine)));
  std::ranges::sort(gpus);
  if (std::ranges::adjacent_find(gpus) == gpus.end()) return {true, "emulated GPUs"};
  return {false, "host memory (two ranks share a GPU)"};
}

std::unique_ptr<Transport> make_device_transport(const DeviceLink& link, Communicator& host,
                                                 const DeviceGroup&, DeviceCopies copies) {
  if (!link.direct) return make_staged_transport(host, std::move(copies));
  return std::make_unique<UnorderedTransport>(host);
}

}  // namespace roundhouse
