// How to wait for something that only polling tells.
#pragma once

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <thread>

namespace roundhouse {

// Between two looks at a request. MPI's own waits spin; with more ranks than cores that takes the
// core from the rank that is waited for. So long waits sleep, about a sixteenth of what they have
// lasted. But MPI moves a message only while somebody looks, some 64 KiB a look: a transfer that is
// under way must not sleep. `bytes` under way earn the time that they take at 1 GB/s.
class Backoff {
  using Clock = std::chrono::steady_clock;

 public:
  explicit Backoff(std::size_t bytes)
      : awake_(std::chrono::microseconds(320) + std::chrono::nanoseconds(bytes)) {}

  void restart() { begin_ = Clock::now(); }  // something has moved

  void pause() {
    const auto waited = Clock::now() - begin_;
    if (waited < std::chrono::microseconds(80)) return;
    if (waited < awake_) {
      sched_yield();
      return;
    }
    std::this_thread::sleep_for(std::clamp<Clock::duration>(
        waited / 16, std::chrono::microseconds(20), std::chrono::microseconds(200)));
  }

 private:
  Clock::duration awake_;
  Clock::time_point begin_ = Clock::now();
};

}  // namespace roundhouse
