// The threads of this rank's host for what is done there beside kernels: weights converted on their way to a device, codes packed on
// their way to a file. One pool for the process, of one thread until it is told how many the rank has.
#pragma once

#include <cstdint>
#include <functional>

namespace roundhouse {

// Not while work is done.
void set_host_threads(int threads);  // 0: as many as this process may run on

// ThreadPool::run(): calls work(piece) for each piece in [0, pieces) and returns when all are done; throws what the lowest piece that
// fails has thrown. What a piece computes must not depend on the thread. For one caller at a time, and not from inside work.
void on_host_threads(std::int64_t pieces, const std::function<void(std::int64_t piece)>& work);

}  // namespace roundhouse
