// How the CPU backend shares work: a kernel names a number of pieces that follows from the problem alone, and threads take
// pieces. What a piece computes never depends on which thread takes it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/thread_pool.h"

namespace roundhouse {

// Calls work(i) for i in [0, pieces); see ThreadPool::run().
template <class Work>
void for_each_piece(ThreadPool& threads, std::int64_t pieces, const Work& work) {
  threads.run(pieces, [&](std::int64_t piece, int) { work(piece); });
}

// Calls work(begin, end) for [0, count) cut into ranges of `step`, the last one shorter.
template <class Work>
void for_each_range(ThreadPool& threads, std::int64_t count, std::int64_t step, const Work& work) {
  for_each_piece(threads, (count + step - 1) / step,
                 [&](std::int64_t i) { work(i * step, std::min(count, (i + 1) * step)); });
}

// Rows of a streaming kernel that make up one piece: enough bytes to be worth a hand-over, few
// enough to share.
inline std::int64_t rows_per_piece(std::int64_t cols) {
  return std::max<std::int64_t>(1, 32768 / std::max<std::int64_t>(1, cols));
}

}  // namespace roundhouse
