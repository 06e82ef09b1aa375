#include "kernels/cpu/thread_pool.h"

#include <omp.h>

#include <utility>

namespace roundhouse {
namespace {

constexpr int kSpins = 2000;  // pauses of some ten nanoseconds

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Until `value` is no longer `old`: awake for a moment, then asleep.
template <class T>
void wait_while(const std::atomic<T>& value, T old) {
  for (int i = 0; i < kSpins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    pause();
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  for (int thread = 1; thread < threads; ++thread)
    workers_.emplace_back([this, thread] { serve(thread); });
}

ThreadPool::~ThreadPool() {
  quit_ = true;
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(std::int64_t pieces, const std::function<void(std::int64_t, int)>& work) {
  omp_set_num_threads(1);  // oneDNN must not start a team of its own in this thread
  if (pieces <= 1 || workers_.empty()) {
    for (std::int64_t piece = 0; piece < pieces; ++piece) work(piece, 0);
    return;
  }
  work_ = &work;
  pieces_ = pieces;
  error_piece_ = pieces;
  next_.store(0, std::memory_order_relaxed);
  busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();

  take_pieces(0);
  for (int busy = busy_.load(std::memory_order_acquire); busy > 0;
       busy = busy_.load(std::memory_order_acquire)) {
    wait_while(busy_, busy);
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadPool::serve(int thread) {
  omp_set_num_threads(1);
  for (std::uint32_t seen = 0;;) {
    wait_while(round_, seen);
    ++seen;
    if (quit_) return;
    take_pieces(thread);
    if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) busy_.notify_one();
  }
}

void ThreadPool::take_pieces(int thread) {
  for (;;) {
    const std::int64_t piece = next_.fetch_add(1, std::memory_order_relaxed);
    if (piece >= pieces_) return;
    try {
      (*work_)(piece, thread);
    } catch (...) {
      while (error_lock_.test_and_set(std::memory_order_acquire)) pause();
      if (piece < error_piece_) {
        error_piece_ = piece;
        error_ = std::current_exception();
      }
      error_lock_.clear(std::memory_order_release);
    }
  }
}

}  // namespace roundhouse
