// Activations of the shards that one rank holds, in host memory; beyond a budget, in unlinked files of a scratch folder that
// the kernel pages. One matrix [tokens, cols] a shard. Never in any result: everything here can be computed again.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/dtype.h"
#include "kernels/memory.h"

namespace roundhouse {

// Host memory that activations may take; shared by all Activations of a rank, and outlives them. Where a device copies
// from and to it, it is pinned, which takes long: such memory is kept for the next that asks for as much.
class ActivationBudget {
 public:
  // `device`: nullptr where the host's memory is the device's.
  ActivationBudget(std::size_t bytes, std::filesystem::path scratch, Memory* device = nullptr)
      : left_(bytes), scratch_(std::move(scratch)), device_(device) {}
  ~ActivationBudget();
  ActivationBudget(const ActivationBudget&) = delete;
  ActivationBudget& operator=(const ActivationBudget&) = delete;
  std::size_t spilled_bytes() const { return spilled_; }

 private:
  friend class Activations;
  struct Region {
    std::span<std::byte> bytes;
    bool in_memory;  // else in a file of the scratch folder
  };
  Region take(std::size_t bytes);
  void give_back(const Region& region);
  void unmap(const Region& region);

  std::size_t left_;
  std::size_t spilled_ = 0;
  std::filesystem::path scratch_;
  Memory* device_;
  std::vector<Region> idle_;  // pinned, not in use
};

class Activations {
 public:
  Activations(ActivationBudget& budget, DType type, std::int64_t cols);
  ~Activations();
  Activations(Activations&&) noexcept;

  std::int64_t cols() const { return cols_; }
  DType type() const { return type_; }
  // Makes room for a shard (contents undefined), if there is none yet. Throws Error when the scratch disk is full.
  void reserve(int shard, std::int64_t tokens);
  void release(int shard);
  bool has(int shard) const;
  std::int64_t tokens(int shard) const;

  // Rows [first, first + rows) of a shard, to and from a backend.
  void store(int shard, std::int64_t first, ConstMatrix from, Memory& memory);
  Tensor load(int shard, std::int64_t first, std::int64_t rows, Memory& memory) const;

  // The same beside the backend's queue (kernels/memory.h): stored after memory.finish_downloads(), loaded after
  // memory.await_upload(ticket).
  void store_behind(int shard, std::int64_t first, ConstMatrix from, Memory& memory);
  struct Loading {
    Tensor rows;
    Memory::UploadTicket ticket;
  };
  Loading load_ahead(int shard, std::int64_t first, std::int64_t rows, Memory& memory) const;

  // The whole shard, row-major: to send, receive, hash and snapshot.
  std::span<std::byte> bytes(int shard);

 private:
  struct Block {  // one shard's memory
    ActivationBudget::Region region;
    std::int64_t tokens;
  };
  std::span<std::byte> rows_of(int shard, std::int64_t first, std::int64_t rows) const;

  ActivationBudget* budget_;
  DType type_;
  std::int64_t cols_;
  std::map<int, Block> blocks_;
};

}  // namespace roundhouse
