#include "stages/calibrate/activations.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

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

ActivationBudget::~ActivationBudget() {
  for (const Region& region : idle_) unmap(region);
}

ActivationBudget::Region ActivationBudget::take(std::size_t bytes) {
  const auto fits = std::ranges::find(idle_, bytes, [](const Region& r) { return r.bytes.size(); });
  if (fits != idle_.end()) {
    const Region region = *fits;
    idle_.erase(fits);
    return region;
  }
  while (bytes > left_ && !idle_.empty()) {  // what is kept makes room first
    unmap(idle_.back());
    idle_.pop_back();
  }

  const bool in_memory = bytes <= left_;
  int fd = -1;
  if (!in_memory) fd = make_scratch_file(scratch_, bytes);
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                    in_memory ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, fd, 0);
  const int failure = errno;
  if (fd >= 0) close(fd);
  if (data == MAP_FAILED) {
    throw Error("no memory for " + std::to_string(bytes >> 20) +
                " MiB of activations: " + std::strerror(failure));
  }
  (in_memory ? left_ -= bytes : spilled_ += bytes);
  const Region region{{static_cast<std::byte*>(data), bytes}, in_memory};
  if (device_ != nullptr) device_->pin(region.bytes);
  return region;
}

void ActivationBudget::give_back(const Region& region) {
  if (device_ != nullptr && region.in_memory) {
    idle_.push_back(region);
  } else {
    unmap(region);
  }
}

void ActivationBudget::unmap(const Region& region) {
  if (device_ != nullptr) device_->unpin(region.bytes);
  munmap(region.bytes.data(), region.bytes.size());
  (region.in_memory ? left_ += region.bytes.size() : spilled_ -= region.bytes.size());
}

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
  const std::size_t bytes = static_cast<std::size_t>(tokens * cols_) * size_of(type_);
  blocks_.emplace(shard, Block{budget_->take(std::max<std::size_t>(bytes, 1)), tokens});
}

void Activations::release(int shard) {
  const auto found = blocks_.find(shard);
  if (found == blocks_.end()) return;
  budget_->give_back(found->second.region);
  blocks_.erase(found);
}

bool Activations::has(int shard) const { return blocks_.contains(shard); }

std::int64_t Activations::tokens(int shard) const { return blocks_.at(shard).tokens; }

std::span<std::byte> Activations::bytes(int shard) { return rows_of(shard, 0, tokens(shard)); }

std::span<std::byte> Activations::rows_of(int shard, std::int64_t first, std::int64_t rows) const {
  const Block& block = blocks_.at(shard);
  require(first >= 0 && rows >= 0 && first + rows <= block.tokens,
          "activations: rows that are not there");
  const std::size_t row = static_cast<std::size_t>(cols_) * size_of(type_);
  return block.region.bytes.subspan(static_cast<std::size_t>(first) * row,
                                    static_cast<std::size_t>(rows) * row);
}

void Activations::store(int shard, std::int64_t first, ConstMatrix from, Memory& memory) {
  store_behind(shard, first, from, memory);
  memory.finish_downloads();
}

void Activations::store_behind(int shard, std::int64_t first, ConstMatrix from, Memory& memory) {
  require(from.type == type_ && from.cols == cols_ && from.stride == cols_,
          "activations: rows of another type or width");
  memory.download_behind(from.data, rows_of(shard, first, from.rows));
}

Tensor Activations::load(int shard, std::int64_t first, std::int64_t rows, Memory& memory) const {
  Loading loading = load_ahead(shard, first, rows, memory);
  memory.await_upload(loading.ticket);
  return std::move(loading.rows);
}

Activations::Loading Activations::load_ahead(int shard, std::int64_t first, std::int64_t rows,
                                             Memory& memory) const {
  Loading loading{Tensor(memory, type_, rows, cols_), 0};
  loading.ticket = memory.upload_ahead(rows_of(shard, first, rows), loading.rows.view().data);
  return loading;
}

}  // namespace roundhouse
