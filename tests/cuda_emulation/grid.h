// Runs the blocks of a grid one after another, and the threads of a block in turns.
//
// A thread runs until it has to wait for others; who runs next is drawn at random (with a fixed seed), among the threads of
// a block as among the blocks of a grid, or is the warp that ran last, so that code which needs an order it has not asked for
// does not get it.
#pragma once

#include <cstddef>
#include <functional>
#include <source_location>
#include <span>
#include <string>

namespace emulation {

inline constexpr unsigned kWarp = 32;
inline constexpr unsigned kMostThreads = 1024;                           // of a block
inline constexpr std::size_t kMostSharedBytes = std::size_t{227} << 10;  // compute capability 9.0

struct Extent {
  unsigned x, y, z;
};

// Runs `thread` for every thread of every block. Returns what went wrong, or nothing: threads of a warp or block that wait
// in different places or for one that has ended, and writes past the shared memory that was asked for.
std::string run_grid(Extent grid, Extent block, std::size_t shared_bytes,
                     const std::function<void()>& thread);

// What a thread calls, inside run_grid():

void wait_for_block(std::source_location where);

// Waits until all threads of the warp have come here. The last one calls act() with the 32 operands, then all go on.
// `name` and `where` must be the same for all.
void wait_for_warp(const char* name, std::source_location where, void* operand,
                   void (*act)(std::span<void* const, kWarp> operands));

// Ends the grid with an error.
void fail(const char* what, std::source_location where);

// A copy that asynchronous instructions may make at any time from now until the thread waits for it: made as late as that.
void copy_later(const void* from, void* to, std::size_t bytes);
void commit_copies();
void wait_for_copies(unsigned groups_left);

unsigned lane();

}  // namespace emulation
