// Ends a job that cannot go on. A rank that dies is noticed by the launcher; a rank that throws says so and aborts the
// job; this notices the rest: a rank that is stopped, unreachable or stuck.
//
// A thread on every rank sends a heartbeat to rank 0 once a second over a communicator of its own, and gets one back. Rank 0
// (and, if rank 0 is silent, the others) ends the job by abort_job(), saying which rank, on which host, doing what:
//   - no heartbeat from a rank for `silence` seconds                    "rank 2 (node7, pid 4711) does not answer"
//   - no rank's main thread called tick() for `patience` seconds        "rank 2 (...) made no progress for 600 s in block 7"
//     (a rank that waits for others is not blamed; if all wait, the job is deadlocked: they are all named)
//
// Every wait inside a communicator is a wait for others (Waiting), and where it moves bytes, progress. One rank that makes progress is
// enough: what the others wait for comes in the end, and a rank that is stuck for good stops all of them, sooner or later.
//
// The heartbeat also carries the wish to stop: request_stop() on any rank is seen by stop_requested() on all, in about 2 s.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <string>

#include "comm/communicator.h"

namespace roundhouse {

struct WatchdogOptions {
  std::chrono::milliseconds interval{1000};
  std::chrono::milliseconds silence{6000};
  std::chrono::milliseconds patience{600000};
};

class Watchdog {
 public:
  // Collective over `world`; works with one rank too. Starts the thread.
  Watchdog(Communicator& world, const WatchdogOptions& options);
  // Joins the thread. On the way out of a finished job: collective (all ranks agree that nobody is left waiting).
  // While an exception unwinds: stops at once.
  ~Watchdog();

  void tick();                        // cheap; from the main thread, at least once a micro-batch
  void set_phase(std::string phase);  // what the main thread is doing, for messages
  void request_stop();                // async-signal-safe
  bool stop_requested() const;        // here or on any rank

  // The one that the calling thread made and has not destroyed; nullptr: none. So what waits deep inside a communicator finds it.
  static Watchdog* of_this_thread();

  // The main thread waits for other ranks while this lives.
  class Waiting {
   public:
    explicit Waiting(Watchdog* watchdog);  // nullptr: nothing
    ~Waiting();

   private:
    Watchdog* watchdog_;
  };

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace roundhouse
