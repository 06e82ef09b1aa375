// The threads of a CPU backend.
//
// Not OpenMP: its threads spin at every barrier, and where ranks and threads outnumber the cores (tests, a shared node) that
// makes a job thirty times slower. These spin for some ten microseconds and then sleep.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <thread>
#include <vector>

namespace roundhouse {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);  // the caller of run() is one of them
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls work(piece, thread) for each piece in [0, pieces), thread in [0, size()). Pieces are handed out one by one in rising
  // order; what a piece computes must not depend on the thread. Returns when all are done. If calls throw, the exception of
  // the lowest piece is thrown. Not for two callers at once, and not from inside work.
  void run(std::int64_t pieces, const std::function<void(std::int64_t piece, int thread)>& work);

 private:
  void serve(int thread);
  void take_pieces(int thread);

  std::vector<std::thread> workers_;
  std::atomic<std::uint32_t> round_{0};  // goes up with each run(): the workers' signal to start
  std::atomic<int> busy_{0};             // workers that have not finished this round
  std::atomic<bool> quit_{false};
  // Of this round; written before round_ goes up.
  std::atomic<std::int64_t> next_{0};
  std::int64_t pieces_ = 0;
  const std::function<void(std::int64_t, int)>* work_ = nullptr;
  std::atomic_flag error_lock_;
  std::int64_t error_piece_ = 0;
  std::exception_ptr error_;
};

}  // namespace roundhouse
