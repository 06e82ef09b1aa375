// Writes records beside the work: while one is written, in a thread of its own, the unit that comes next is made.
//
// One at a time, so that a rank's records appear in the order in which it commits them. What writing meets is kept for finish():
// whoever says that something is done calls that first.
#pragma once

#include <exception>
#include <functional>
#include <future>
#include <string>

#include "stages/store/run_store.h"

namespace roundhouse {

class WriteBehind {
 public:
  explicit WriteBehind(RunStore& store) : store_(store) {}
  // Ends the writing that is under way. A failure that nobody has asked for goes with the one that ends the job already.
  ~WriteBehind();
  WriteBehind(const WriteBehind&) = delete;
  WriteBehind& operator=(const WriteBehind&) = delete;

  // Precondition: nothing is under way. `then`, if the record is written, on the thread that calls poll() or finish(); with the
  // seconds that writing took.
  void start(std::string key, Record record, std::function<void(double seconds)> then);
  // If the writing has ended, calls its `then`. Throws nothing that writing has met: this may be called from anywhere.
  void poll();
  // Waits for the end of the writing and calls its `then`, unless poll() has. Throws what writing has met.
  void finish();

 private:
  RunStore& store_;
  std::future<double> written_;  // what is under way
  std::function<void(double)> then_;
  std::exception_ptr failure_;
};

}  // namespace roundhouse
