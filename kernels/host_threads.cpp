#include "kernels/host_threads.h"

#include <sched.h>

#include <memory>

#include "kernels/cpu/thread_pool.h"

namespace roundhouse {
namespace {

std::unique_ptr<ThreadPool>& the_pool() {
  static auto pool = std::make_unique<ThreadPool>(1);
  return pool;
}

}  // namespace

void set_host_threads(int threads) {
  cpu_set_t set;
  if (threads == 0) threads = ::sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
  if (threads != the_pool()->size()) the_pool() = std::make_unique<ThreadPool>(threads);
}

void on_host_threads(std::int64_t pieces, const std::function<void(std::int64_t piece)>& work) {
  the_pool()->run(pieces, [&](std::int64_t piece, int) { work(piece); });
}

}  // namespace roundhouse
