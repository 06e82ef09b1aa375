// Seconds and floating-point operations of the parts of a block's work, for the journal and the benchmark: the objects
// "phases" and "flops" of a block's record, {"forward": .., "gram": .., "factor": .., "solve": ..}.
// "other" is what belongs to no part: the seconds add up.
//
// Seconds are this rank's, waiting for the others included; with those of "load" (the block's weights) and "commit", which are not
// the method's, they add up to the block's. Operations are the whole team's, counted from the shapes: the
// linears of a forward pass (not its attention), n² a token for a Gram matrix of n columns, 2 n³ / 3 for a factorization, rows n²
// for solving a linear.
#pragma once

#include <algorithm>
#include <chrono>
#include <string>

#include <nlohmann/json.hpp>

#include "kernels/backend.h"

namespace roundhouse {

// Of a backend that only reckons what things take: its time goes by another clock than the host's.
class OwnClock {
 public:
  virtual ~OwnClock() = default;
  virtual double seconds() const = 0;
};

class PhaseClock {
 public:
  explicit PhaseClock(Backend& backend) : backend_(backend) {}

  template <class Work>
  void measure(const std::string& part, Work&& work) {
    const double begin = now();
    work();
    backend_.sync();  // the work may only be queued
    add(seconds_, part, now() - begin);
  }
  void count(const std::string& part, double flops) { add(flops_, part, flops); }

  void write(nlohmann::json& record) const {
    double other = now() - begin_;
    for (const nlohmann::json& part : seconds_) other -= part.get<double>();
    record["phases"] = seconds_;
    record["phases"]["other"] = std::max(0.0, other);
    record["flops"] = flops_;
  }

 private:
  double now() const {
    if (const auto* own = dynamic_cast<const OwnClock*>(&backend_)) return own->seconds();
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
  static void add(nlohmann::json& sums, const std::string& part, double value) {
    sums[part] = sums.value(part, 0.0) + value;
  }

  Backend& backend_;
  double begin_ = now();
  nlohmann::json seconds_ = nlohmann::json::object();
  nlohmann::json flops_ = nlohmann::json::object();
};

}  // namespace roundhouse
