#include "stages/calibrate/activations.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "base/error.h"

namespace roundhouse {
namespace {

// A file without a name in `folder`, with its space allocated: what is written to the mapping later cannot fail for want of room.
int make_scratch_file(const std::filesystem::path& folder, std::size_t bytes) {
  std::filesystem::create_directories(folder);
  std::string name = (folder / "activations-XXXXXX").string();
  const int fd = mkstemp(name.data());
  if (fd < 0) throw Error("scratch folder " + folder.string() + ": " + std::strerror(errno));
  unlink(name.c_str());
  const int failure = posix_fallocate(fd, 0, static_cast<off_t>(bytes));
  if (failure != 0) {
    close(fd);
    throw Error("scratch folder " + folder.string() + ": no room for " +
                std::to_string(bytes >> 20) + " MiB of activations: " + std::strerror(failure));
  }
  return fd;
}

}  // namespace

struct Activations::Block {
  std::byte* data = nullptr;
  std::size_t bytes = 0;
  std::int64_t tokens = 0;
  bool in_memory = false;
};

Activations::Activations(ActivationBudget& budget, DType type, std::int64_t cols)
    : budget_(&budget), type_(type), cols_(cols) {}

Activations::Activations(Activations&&) noexcept = default;

Activations::~Activations() {
  while (!blocks_.empty()) release(blocks_.begin()->first);
}

void Activations::reserve(int shard, std::int64_t tokens) {
  if (has(shard)) {
    require(this->tokens(shard) == tokens, "activations: a shard changed its size");
    return;
  }
  auto block = std::make_unique<Block>();
  block->tokens = tokens;
  block->bytes = static_cast<std::size_t>(tokens * cols_) * size_of(type_);
  block->in_memory = block->bytes <= budget_->left_;

  const std::size_t mapped = block->bytes == 0 ? 1 : block->bytes;
  int fd = -1;
  if (!block->in_memory) fd = make_scratch_file(budget_->scratch_, mapped);
  void* data = mmap(nullptr, mapped, PROT_READ | PROT_WRITE,
                    block->in_memory ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, fd, 0);
  const int failure = errno;
  if (fd >= 0) close(fd);
  if (data == MAP_FAILED) {
    throw Error("no memory for " + std::to_string(mapped >> 20) +
                " MiB of activations: " + std::strerror(failure));
  }
  block->data = static_cast<std::byte*>(data);
  (block->in_memory ? budget_->left_ -= block->bytes : budget_->spilled_ += block->bytes);
  blocks_.emplace(shard, std::move(block));
}

void Activations::release(int shard) {
  const auto found = blocks_.find(shard);
  if (found == blocks_.end()) return;
  const Block& block = *found->second;
  munmap(block.data, block.bytes == 0 ? 1 : block.bytes);
  (block.in_memory ? budget_->left_ += block.bytes : budget_->spilled_ -= block.bytes);
  blocks_.erase(found);
}

bool Activations::has(int shard) const { return blocks_.contains(shard); }

std::int64_t Activations::tokens(int shard) const { return blocks_.at(shard)->tokens; }

std::span<std::byte> Activations::bytes(int shard) {
  const Block& block = *blocks_.at(shard);
  return {block.data, block.bytes};
}

void Activations::store(int shard, std::int64_t first, ConstMatrix from, Memory& memory) {
  const Block& block = *blocks_.at(shard);
  require(from.type == type_ && from.cols == cols_ && from.stride == cols_ && first >= 0 &&
              first + from.rows <= block.tokens,
          "activations: store");
  const std::size_t row = static_cast<std::size_t>(cols_) * size_of(type_);
  memory.download(from.data, {block.data + static_cast<std::size_t>(first) * row,
                              static_cast<std::size_t>(from.rows) * row});
}

Tensor Activations::load(int shard, std::int64_t first, std::int64_t rows, Memory& memory) const {
  const Block& block = *blocks_.at(shard);
  require(first >= 0 && rows >= 0 && first + rows <= block.tokens, "activations: load");
  Tensor tensor(memory, type_, rows, cols_);
  const std::size_t row = static_cast<std::size_t>(cols_) * size_of(type_);
  memory.upload(
      {block.data + static_cast<std::size_t>(first) * row, static_cast<std::size_t>(rows) * row},
      tensor.view().data);
  return tensor;
}

}  // namespace roundhouse
