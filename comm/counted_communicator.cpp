#include "comm/counted_communicator.h"

#include <utility>

namespace roundhouse {
namespace {

class Counted final : public Communicator {
 public:
  Counted(std::unique_ptr<Communicator> inner, std::atomic<std::uint64_t>& sent)
      : inner_(std::move(inner)), sent_(sent) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  std::unique_ptr<Ticket> start(std::span<const Send> sends,
                                std::span<const Receive> receives) override {
    for (const Send& send : sends) {
      if (send.to != rank()) sent_ += send.data.size();
    }
    return inner_->start(sends, receives);
  }
  void broadcast(std::span<std::byte> data, int root) override {
    if (rank() == root) sent_ += data.size() * others();
    inner_->broadcast(data, root);
  }
  std::vector<std::vector<std::byte>> gather(std::span<const std::byte> mine, int root) override {
    if (rank() != root) sent_ += mine.size();
    return inner_->gather(mine, root);
  }
  std::vector<std::vector<std::byte>> all_gather(std::span<const std::byte> mine) override {
    sent_ += mine.size() * others();
    return inner_->all_gather(mine);
  }
  std::int64_t all_reduce_max(std::int64_t value) override { return inner_->all_reduce_max(value); }
  std::int64_t all_reduce_min(std::int64_t value) override { return inner_->all_reduce_min(value); }
  std::int64_t all_reduce_sum(std::int64_t value) override { return inner_->all_reduce_sum(value); }
  void barrier() override { inner_->barrier(); }
  std::unique_ptr<Communicator> split(int color, int key) override {
    return count_bytes(inner_->split(color, key), sent_);
  }

 private:
  std::uint64_t others() const { return static_cast<std::uint64_t>(size() - 1); }

  std::unique_ptr<Communicator> inner_;
  std::atomic<std::uint64_t>& sent_;
};

}  // namespace

std::unique_ptr<Communicator> count_bytes(std::unique_ptr<Communicator> inner,
                                          std::atomic<std::uint64_t>& sent) {
  return std::make_unique<Counted>(std::move(inner), sent);
}

}  // namespace roundhouse
