// Activations of the shards that one rank holds, in host memory; beyond a budget, in unlinked files of a scratch folder that
// the kernel pages. Where they are for one device alone and it has room for them, they may stay there. One matrix [tokens, cols] a shard. Never in any result: everything here can be computed again.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "kernels/memory.h"

namespace roundhouse {

// Host memory that activations may take; shared by all Activations of a rank, and outlives them.
//
// It is one range of addresses, of which shards take pieces, the lowest that fits first: what one group of linears has left
// behind, the next one's wider activations use. Where a device copies from and to it, it is pinned, which takes long:
// from its beginning on, as far as it has come to be used, once, until the end.
class ActivationBudget {
 public:
  // `device`: nullptr where the host's memory is the device's. Throws Error where there are no addresses for so many bytes.
  ActivationBudget(std::size_t bytes, std::filesystem::path scratch, Memory* device = nullptr);
  ~ActivationBudget();
  ActivationBudget(const ActivationBudget&) = delete;
  ActivationBudget& operator=(const ActivationBudget&) = delete;

  std::size_t bytes() const { return capacity_; }
  // In files of the scratch folder, which are never pinned.
  std::size_t spilled_bytes() const { return spilled_; }
  std::size_t pinned_bytes() const { return pinned_bytes_; }  // never more than the budget
  // Where memory cannot be pinned: called once, with how much was asked for in vain. From there on nothing more is pinned.
  std::function<void(std::size_t bytes, const std::string& why)> on_pin_failure;

 private:
  friend class Activations;
  struct Region {
    std::span<std::byte> bytes;
    bool in_memory;  // else in a file of the scratch folder
  };
  Region take(std::size_t bytes);
  void give_back(const Region& region);
  std::optional<std::size_t> take_from_arena(std::size_t bytes);
  void open_to(std::size_t end);

  std::byte* arena_ = nullptr;
  std::size_t capacity_;                     // of the arena: whole pages
  std::size_t opened_ = 0;                   // may be read and written, from the beginning
  std::map<std::size_t, std::size_t> free_;  // offset, bytes: no two of them touch
  std::size_t spilled_ = 0;
  std::filesystem::path scratch_;
  Memory* device_;
  std::vector<std::span<std::byte>> pinned_;  // pieces, from the arena's beginning
  std::size_t pinned_bytes_ = 0;
  bool pins_;  // until it fails once
};

class Activations {
 public:
  // Shards stay in this device's memory while they take no more than `bytes` of it together, the rest is in the budget's.
  // bytes() is for those of the budget alone.
  struct OnDevice {
    Memory* memory = nullptr;
    std::size_t bytes = 0;
  };
  Activations(ActivationBudget& budget, DType type, std::int64_t cols);
  Activations(ActivationBudget& budget, DType type, std::int64_t cols, OnDevice device);
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
  // Loading::finish().
  void store_behind(int shard, std::int64_t first, ConstMatrix from, Memory& memory);
  struct Loading {
    Tensor rows;
    std::optional<Memory::UploadTicket> ticket;  // none: queued
    Tensor finish(Memory& memory);
  };
  Loading load_ahead(int shard, std::int64_t first, std::int64_t rows, Memory& memory) const;

  // The whole shard, row-major: to send, receive, hash and snapshot.
  std::span<std::byte> bytes(int shard);

 private:
  struct Block {  // one shard's memory
    ActivationBudget::Region region;
    std::int64_t tokens;
    Tensor on_device;  // in place of the region
  };
  std::span<std::byte> rows_of(int shard, std::int64_t first, std::int64_t rows) const;

  ActivationBudget* budget_;
  DType type_;
  std::int64_t cols_;
  OnDevice device_;
  std::map<int, Block> blocks_;
};

}  // namespace roundhouse
