#include "tests/cuda_emulation/grid.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <memory>
#include <numeric>
#include <vector>

#include "tests/cuda_emulation/fiber.h"

namespace roundhouse {

// What kernels/cuda/block.cuh declares: blocks run one at a time, so there is one.
extern unsigned char dynamic_shared[];
constexpr std::size_t kGuardBytes = 4096;  // must stay as it is
alignas(128) unsigned char dynamic_shared[emulation::kMostSharedBytes + kGuardBytes];

}  // namespace roundhouse

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace emulation {
namespace {

using roundhouse::dynamic_shared;

constexpr unsigned char kGuard = 0xa5;

struct Copy {
  const void* from;
  void* to;
  std::size_t bytes;
};

struct Thread {
  Fiber fiber;
  uint3 index;
  unsigned number;
  bool done;
  std::vector<Copy> copies;                 // not committed yet
  std::deque<std::vector<Copy>> committed;  // groups, oldest first
};

// Where a warp or a block gathers.
struct Meeting {
  const char* name = nullptr;
  std::source_location where;
  unsigned arrived = 0;
  std::array<void*, kWarp> operands;
};

std::string place(const std::source_location& where) {
  return std::string(where.file_name()) + ":" + std::to_string(where.line());
}

class Block {
 public:
  Block() : stacks_(kMostThreads), threads_(kMostThreads) {}

  std::string run(Extent size, const std::function<void()>& body, std::uint64_t& random);

  void meet(Meeting& meeting, unsigned expected, const char* name, std::source_location where,
            void* operand, void (*act)(std::span<void* const, kWarp>), unsigned first);
  void fail(std::string error) {
    error_ = std::move(error);
    current_->fiber.leave();
  }
  Thread& current() { return *current_; }
  unsigned count() const { return count_; }
  Meeting& warp(unsigned number) { return warps_[number]; }
  Meeting& whole() { return whole_; }

 private:
  static void enter(void* thread);

  Stacks stacks_;
  std::vector<Thread> threads_;
  std::array<Meeting, kMostThreads / kWarp> warps_;
  Meeting whole_;
  std::vector<unsigned> ready_;
  Thread* current_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  unsigned count_ = 0;
  std::string error_;
};

std::unique_ptr<Block> block;

// A number below `end`, by xorshift.
std::size_t draw(std::uint64_t& random, std::size_t end) {
  random ^= random << 13;
  random ^= random >> 7;
  random ^= random << 17;
  return static_cast<std::size_t>((random >> 32) * end >> 32);
}

bool same_place(const std::source_location& a, const std::source_location& b) {
  return a.line() == b.line() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

void Block::enter(void* thread) {
  Thread& t = *static_cast<Thread*>(thread);
  (*block->body_)();
  wait_for_copies(0);
  t.done = true;
  t.fiber.leave_for_good();
}

std::string Block::run(Extent size, const std::function<void()>& body, std::uint64_t& random) {
  count_ = size.x * size.y * size.z;
  body_ = &body;
  error_.clear();
  for (Meeting& meeting : warps_) meeting.arrived = 0;
  whole_.arrived = 0;
  ready_.resize(count_);
  std::iota(ready_.begin(), ready_.end(), 0u);
  for (unsigned i = 0; i < count_; ++i) {
    Thread& t = threads_[i];
    t.number = i;
    t.index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
    t.done = false;
    t.copies.clear();
    t.committed.clear();
    t.fiber.start(stacks_.bottom(i), &enter, &t);
  }
  // Half of the blocks let the warp that went last go on, far ahead of the others; the other half are fair to all.
  const bool run_ahead = draw(random, 2) == 0;
  unsigned done = 0;
  while (!ready_.empty() && error_.empty()) {
    if (!run_ahead) std::swap(ready_[draw(random, ready_.size())], ready_.back());
    current_ = &threads_[ready_.back()];
    ready_.pop_back();
    threadIdx = current_->index;
    current_->fiber.resume();
    done += current_->done ? 1 : 0;
  }
  if (!error_.empty() || done == count_) return error_;
  const auto stuck = [&](const Meeting& meeting) {
    return std::string(meeting.name) + " at " + place(meeting.where) + ": " +
           std::to_string(meeting.arrived) +
           " threads wait for others that have ended or wait elsewhere";
  };
  if (whole_.arrived > 0) return stuck(whole_);
  return stuck(*std::ranges::find_if(warps_, [](const Meeting& m) { return m.arrived > 0; }));
}

void Block::meet(Meeting& meeting, unsigned expected, const char* name, std::source_location where,
                 void* operand, void (*act)(std::span<void* const, kWarp>), unsigned first) {
  Thread& me = current();
  if (meeting.arrived == 0) {
    meeting.name = name;
    meeting.where = where;
  } else if (meeting.name != name || !same_place(meeting.where, where)) {
    fail(std::string(name) + " at " + place(where) + " meets " + meeting.name + " at " +
         place(meeting.where) + ": threads that should act together have parted");
  }
  if (act != nullptr) meeting.operands[me.number - first] = operand;
  if (++meeting.arrived < expected) {
    me.fiber.leave();
    return;
  }
  if (act != nullptr) act(meeting.operands);
  meeting.arrived = 0;
  for (unsigned i = first; i < first + expected; ++i) ready_.push_back(i);
  me.fiber.leave();  // anyone may be the next
}

}  // namespace

std::string run_grid(Extent grid, Extent block_size, std::size_t shared_bytes,
                     const std::function<void()>& thread) {
  const unsigned count = block_size.x * block_size.y * block_size.z;
  if (count == 0 || count > kMostThreads || count % kWarp != 0) {
    return "a block of " + std::to_string(count) + " threads is none of whole warps";
  }
  if (!block) block = std::make_unique<Block>();
  gridDim = dim3(grid.x, grid.y, grid.z);
  blockDim = dim3(block_size.x, block_size.y, block_size.z);
  std::vector<unsigned> order(static_cast<std::size_t>(grid.x) * grid.y * grid.z);
  std::iota(order.begin(), order.end(), 0u);
  std::uint64_t random = 0x9e3779b97f4a7c15u ^ order.size();
  for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[draw(random, i)]);
  for (const unsigned number : order) {
    blockIdx = {number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
    std::memset(dynamic_shared, 0xff, shared_bytes);  // NaN: nothing is initialised
    std::memset(dynamic_shared + shared_bytes, kGuard, roundhouse::kGuardBytes);
    std::string error = block->run(block_size, thread, random);
    if (error.empty() && !std::all_of(dynamic_shared + shared_bytes,
                                      dynamic_shared + shared_bytes + roundhouse::kGuardBytes,
                                      [](unsigned char byte) { return byte == kGuard; })) {
      error = "a write past the shared memory that was asked for";
    }
    if (!error.empty()) return error;
  }
  return {};
}

void wait_for_block(std::source_location where) {
  block->meet(block->whole(), block->count(), "__syncthreads", where, nullptr, nullptr, 0);
}

void wait_for_warp(const char* name, std::source_location where, void* operand,
                   void (*act)(std::span<void* const, kWarp>)) {
  const unsigned warp = block->current().number / kWarp;
  block->meet(block->warp(warp), kWarp, name, where, operand, act, warp * kWarp);
}

void fail(const char* what, std::source_location where) {
  block->fail(std::string(what) + " at " + place(where));
}

void copy_later(const void* from, void* to, std::size_t bytes) {
  block->current().copies.push_back({from, to, bytes});
}

void commit_copies() {
  Thread& me = block->current();
  me.committed.push_back(std::move(me.copies));
  me.copies.clear();
}

void wait_for_copies(unsigned groups_left) {
  Thread& me = block->current();
  while (me.committed.size() > groups_left) {
    for (const Copy& copy : me.committed.front()) {
      if (copy.from == nullptr) {
        std::memset(copy.to, 0, copy.bytes);
      } else {
        std::memcpy(copy.to, copy.from, copy.bytes);
      }
    }
    me.committed.pop_front();
  }
}

unsigned lane() { return block->current().number % kWarp; }

}  // namespace emulation
