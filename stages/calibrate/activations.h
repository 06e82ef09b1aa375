// Activations of the shards that one rank holds, in host memory; beyond a budget, in unlinked files of a scratch folder that
// the kernel pages. One matrix [tokens, cols] a shard. Never in any result: everything here can be computed again.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>

#include "base/dtype.h"
#include "kernels/memory.h"

namespace roundhouse {

// Host memory that activations may take; shared by all Activations of a rank.
class ActivationBudget {
 public:
  ActivationBudget(std::size_t bytes, std::filesystem::path scratch)
      : left_(bytes), scratch_(std::move(scratch)) {}
  std::size_t spilled_bytes() const { return spilled_; }

 private:
  friend class Activations;
  std::size_t left_;
  std::size_t spilled_ = 0;
  std::filesystem::path scratch_;
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

  // The whole shard, row-major: to send, receive, hash and snapshot.
  std::span<std::byte> bytes(int shard);

 private:
  struct Block;  // one shard's memory
  ActivationBudget* budget_;
  DType type_;
  std::int64_t cols_;
  std::map<int, std::unique_ptr<Block>> blocks_;
};

}  // namespace roundhouse
