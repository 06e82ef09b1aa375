// How the CPU backend shares work: a kernel names a number of pieces that follows from the problem
// alone, and threads take pieces. What a piece computes never depends on which thread takes it.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <exception>

namespace roundhouse {

// Calls work(i) for i in [0, pieces). Pieces are handed out one by one in rising order. If calls
// throw, the exception of the lowest piece is thrown once all threads are done.
template <class Work>
void for_each_piece(int threads, std::int64_t pieces, const Work& work) {
  std::exception_ptr error;
  std::int64_t error_piece = pieces;
#pragma omp parallel num_threads(static_cast <int>(std::clamp <std::int64_t>(pieces, 1, threads)))
  {
    // What a piece calls runs on its own thread alone. OpenMP grants that inside a team of several,
    // but a team of one does not count as parallel, and oneDNN would start a team of its own. The
    // setting ends with this region.
    omp_set_num_threads(1);
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t i = 0; i < pieces; ++i) {
      try {
        work(i);
      } catch (...) {
#pragma omp critical(roundhouse_first_error)
        if (i < error_piece) {
          error_piece = i;
          error = std::current_exception();
        }
      }
    }
  }
  if (error) std::rethrow_exception(error);
}

// Calls work(begin, end) for [0, count) cut into ranges of `step`, the last one shorter.
template <class Work>
void for_each_range(int threads, std::int64_t count, std::int64_t step, const Work& work) {
  for_each_piece(threads, (count + step - 1) / step,
                 [&](std::int64_t i) { work(i * step, std::min(count, (i + 1) * step)); });
}

// Rows of a streaming kernel that make up one piece: enough bytes to be worth a hand-over, few
// enough to share.
inline std::int64_t rows_per_piece(std::int64_t cols) {
  return std::max<std::int64_t>(1, 32768 / std::max<std::int64_t>(1, cols));
}

}  // namespace roundhouse
