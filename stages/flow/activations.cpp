#include "stages/flow/activations.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>
#include <iterator>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "base/error.h"

namespace roundhouse {
namespace {

// Pages of the arena are opened and pinned in pieces of at least this: small shards do not each make one.
constexpr std::size_t kOpenedAtOnce = std::size_t{64} << 20;

std::size_t page_bytes() { return static_cast<std::size_t>(sysconf(_SC_PAGESIZE)); }

std::size_t rounded_up(std::size_t bytes, std::size_t to) { return (bytes + to - 1) / to * to; }

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
    throw Error(fmt::format("scratch folder {}: no room for {} MiB of activations: {}",
                            folder.string(), bytes >> 20, std::strerror(failure)));
  }
  return fd;
}

}  // namespace

ActivationBudget::ActivationBudget(std::size_t bytes, std::filesystem::path scratch, Memory* device)
    : capacity_(bytes / page_bytes() * page_bytes()),
      scratch_(std::move(scratch)),
      device_(device),
      pins_(device != nullptr) {
  if (capacity_ == 0) return;
  // Addresses only: pages that nothing may touch count nowhere.
  void* const data =
      mmap(nullptr, capacity_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) {
    throw Error(fmt::format(
        "memory.activations_gib: no addresses for {} MiB of activations: {} (ulimit -v)",
        capacity_ >> 20, std::strerror(errno)));
  }
  arena_ = static_cast<std::byte*>(data);
  free_.emplace(0, capacity_);
}

ActivationBudget::~ActivationBudget() {
  // While an error unwinds the process ends: unpinning would wait for the device, perhaps for ever, before the error is told.
  if (std::uncaught_exceptions() > 0) return;
  for (const std::span<std::byte> piece : pinned_) device_->unpin(piece);
  if (arena_ != nullptr) munmap(arena_, capacity_);
}

std::optional<std::size_t> ActivationBudget::take_from_arena(std::size_t bytes) {
  const auto hole = std::ranges::find_if(free_, [&](const auto& h) { return bytes <= h.second; });
  if (hole == free_.end()) return std::nullopt;
  const auto [offset, size] = *hole;
  free_.erase(hole);
  if (bytes < size) free_.emplace(offset + bytes, size - bytes);
  return offset;
}

void ActivationBudget::open_to(std::size_t end) {
  if (end <= opened_) return;
  const std::size_t bytes = std::min(rounded_up(end - opened_, kOpenedAtOnce), capacity_ - opened_);
  const std::span<std::byte> piece(arena_ + opened_, bytes);
  if (mprotect(piece.data(), bytes, PROT_READ | PROT_WRITE) != 0) {
    throw Error(
        fmt::format("no memory for {} MiB of activations: {}", bytes >> 20, std::strerror(errno)));
  }
  opened_ += bytes;
  if (!pins_) return;
  const std::string why = device_->pin(piece);
  if (why.empty()) {
    pinned_.push_back(piece);
    pinned_bytes_ += bytes;
  } else {
    pins_ = false;
    if (on_pin_failure) on_pin_failure(bytes, why);
  }
}

ActivationBudget::Region ActivationBudget::take(std::size_t bytes) {
  const std::size_t rounded = rounded_up(bytes, page_bytes());
  if (const auto offset = take_from_arena(rounded)) {
    open_to(*offset + rounded);
    return {{arena_ + *offset, bytes}, true};
  }
  const int fd = make_scratch_file(scratch_, bytes);
  void* const data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  const int failure = errno;
  close(fd);
  if (data == MAP_FAILED) {
    throw Error(fmt::format("no memory for {} MiB of activations: {}", bytes >> 20,
                            std::strerror(failure)));
  }
  spilled_ += bytes;
  return {{static_cast<std::byte*>(data), bytes}, false};
}

void ActivationBudget::give_back(const Region& region) {
  if (!region.in_memory) {
    munmap(region.bytes.data(), region.bytes.size());
    spilled_ -= region.bytes.size();
    return;
  }
  auto offset = static_cast<std::size_t>(region.bytes.data() - arena_);
  std::size_t size = rounded_up(region.bytes.size(), page_bytes());
  // What is not pinned goes back to the machine.
  const std::size_t unpinned = std::max(offset, pinned_bytes_);
  if (unpinned < offset + size) madvise(arena_ + unpinned, offset + size - unpinned, MADV_DONTNEED);

  auto after = free_.lower_bound(offset);
  if (after != free_.end() && after->first == offset + size) {
    size += after->second;
    after = free_.erase(after);
  }
  if (after != free_.begin()) {
    const auto before = std::prev(after);
    if (before->first + before->second == offset) {
      before->second += size;
      return;
    }
  }
  free_.emplace(offset, size);
}

Activations::Activations(ActivationBudget& budget, DType type, std::int64_t cols)
    : Activations(budget, type, cols, OnDevice{}) {}

Activations::Activations(ActivationBudget& budget, DType type, std::int64_t cols, OnDevice device)
    : budget_(&budget), type_(type), cols_(cols), device_(device) {}

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
  if (device_.memory != nullptr && bytes <= device_.bytes) {
    device_.bytes -= bytes;
    blocks_.emplace(shard, Block{{}, tokens, Tensor(*device_.memory, type_, tokens, cols_)});
    return;
  }
  blocks_.emplace(shard, Block{budget_->take(std::max<std::size_t>(bytes, 1)), tokens, {}});
}

void Activations::release(int shard) {
  const auto found = blocks_.find(shard);
  if (found == blocks_.end()) return;
  Block& block = found->second;
  if (block.on_device.empty()) {
    budget_->give_back(block.region);
  } else {
    device_.bytes += block.on_device.bytes();
  }
  blocks_.erase(found);
}

bool Activations::has(int shard) const { return blocks_.contains(shard); }

std::int64_t Activations::tokens(int shard) const { return blocks_.at(shard).tokens; }

std::span<std::byte> Activations::bytes(int shard) { return rows_of(shard, 0, tokens(shard)); }

std::span<std::byte> Activations::rows_of(int shard, std::int64_t first, std::int64_t rows) const {
  const Block& block = blocks_.at(shard);
  require(block.on_device.empty(), "activations: a shard that is on the device");
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
  Tensor& here = blocks_.at(shard).on_device;
  if (!here.empty()) {
    memory.copy(from, here.view().row_range(first, first + from.rows));
  } else {
    memory.download_behind(from.data, rows_of(shard, first, from.rows));
  }
}

Tensor Activations::load(int shard, std::int64_t first, std::int64_t rows, Memory& memory) const {
  return load_ahead(shard, first, rows, memory).finish(memory);
}

Tensor Activations::Loading::finish(Memory& memory) {
  if (ticket) memory.await_upload(*ticket);
  return std::move(rows);
}

Activations::Loading Activations::load_ahead(int shard, std::int64_t first, std::int64_t rows,
                                             Memory& memory) const {
  Loading loading{Tensor(memory, type_, rows, cols_), {}};
  const Tensor& here = blocks_.at(shard).on_device;
  if (!here.empty()) {
    memory.copy(here.view().row_range(first, first + rows), loading.rows.view());
    return loading;
  }
  loading.ticket = memory.upload_ahead(rows_of(shard, first, rows), loading.rows.view().data);
  return loading;
}

}  // namespace roundhouse
