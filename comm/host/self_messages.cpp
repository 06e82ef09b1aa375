#include "comm/host/self_messages.h"

#include <algorithm>

#include <fmt/format.h>

#include "base/error.h"

namespace roundhouse {

void SelfMessages::send(std::uint64_t ticket, std::span<const std::byte> data) {
  sends_.push_back({ticket, data});
  match();
}

void SelfMessages::receive(std::uint64_t ticket, std::span<std::byte> data) {
  receives_.push_back({ticket, data});
  match();
}

void SelfMessages::match() {
  while (!sends_.empty() && !receives_.empty()) {
    const auto from = sends_.front().data;
    const auto to = receives_.front().data;
    if (from.size() != to.size()) {
      throw Error(
          fmt::format("a message of {} bytes came where rank {} receives {} bytes from itself",
                      from.size(), rank_, to.size()));
    }
    std::ranges::copy(from, to.begin());
    sends_.pop_front();
    receives_.pop_front();
  }
}

bool SelfMessages::done(std::uint64_t ticket) const {
  const auto is_it = [ticket](const auto& half) { return half.ticket == ticket; };
  return std::ranges::none_of(sends_, is_it) && std::ranges::none_of(receives_, is_it);
}

void SelfMessages::wait(std::uint64_t ticket) const {
  if (!done(ticket)) {
    throw Error(fmt::format(
        "rank {} waits for a message to itself whose other half it has not started", rank_));
  }
}

void SelfMessages::withdraw(std::uint64_t ticket) {
  const auto is_it = [ticket](const auto& half) { return half.ticket == ticket; };
  std::erase_if(sends_, is_it);
  std::erase_if(receives_, is_it);
}

}  // namespace roundhouse
