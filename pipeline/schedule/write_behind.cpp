#include "pipeline/schedule/write_behind.h"

#include <chrono>
#include <exception>
#include <utility>

#include "base/error.h"

namespace roundhouse {

WriteBehind::~WriteBehind() {
  if (!written_.valid()) return;
  written_.wait();
  try {
    poll();  // what is there is told of
  } catch (...) {
  }
}

void WriteBehind::start(std::string key, Record record, std::function<void(double seconds)> then) {
  require(!written_.valid() && !failure_, "one record at a time is written behind");
  then_ = std::move(then);
  written_ =
      std::async(std::launch::async, [this, key = std::move(key), record = std::move(record)] {
        const auto start = std::chrono::steady_clock::now();
        store_.commit(key, record);
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      });
}

void WriteBehind::poll() {
  if (!written_.valid() ||
      written_.wait_for(std::chrono::seconds(0)) != std::future_status::ready) {
    return;
  }
  double seconds = 0;
  const std::function<void(double)> then = std::exchange(then_, nullptr);
  try {
    seconds = written_.get();
  } catch (...) {
    failure_ = std::current_exception();
    return;
  }
  then(seconds);
}

void WriteBehind::finish() {
  if (written_.valid()) written_.wait();
  poll();
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

}  // namespace roundhouse
