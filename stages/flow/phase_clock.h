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
#include <string>

#include <nlohmann/json.hpp>

#include "kernels/backend.h"

namespace roundhouse {

class PhaseClock {
 public:
  explicit PhaseClock(Backend& backend) : backend_(backend) {}

  template <class Work>
  void measure(const std::string& part, Work&& work) {
    const double begin = backend_.seconds();
    work();
    backend_.sync();  // the work may only be queued
    add(seconds_, part, backend_.seconds() - begin);
  }
  void count(const std::string& part, double flops) { add(flops_, part, flops); }

  void write(nlohmann::json& record) const {
    double other = backend_.seconds() - begin_;
    for (const nlohmann::json& part : seconds_) other -= part.get<double>();
    record["phases"] = seconds_;
    record["phases"]["other"] = std::max(0.0, other);
    record["flops"] = flops_;
  }

 private:
  static void add(nlohmann::json& sums, const std::string& part, double value) {
    sums[part] = sums.value(part, 0.0) + value;
  }

  Backend& backend_;
  double begin_ = backend_.seconds();
  nlohmann::json seconds_ = nlohmann::json::object();
  nlohmann::json flops_ = nlohmann::json::object();
};

}  // namespace roundhouse
