// Seconds and floating-point operations of the parts of a block's work, for the journal and the benchmark: the objects
// "phases" and "flops" of a block's record, {"forward": .., "gram": .., "factor": .., "solve": ..}.
//
// Seconds are this rank's, waiting for the others included. Operations are the whole team's, counted from the shapes: the
// linears of a forward pass (not its attention), n² a token for a Gram matrix of n columns, 2 n³ / 3 for a factorization, rows n²
// for solving a linear.
#pragma once

#include <chrono>
#include <string>

#include <nlohmann/json.hpp>

#include "kernels/backend.h"

namespace roundhouse {

class PhaseClock {
 public:
  explicit PhaseClock(Backend& backend) : backend_(backend) {}

  template <class Work>
  void measure(const std::string& part, Work&& work) {
    const auto begin = std::chrono::steady_clock::now();
    work();
    backend_.sync();  // the work may only be queued
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
    add(seconds_, part, elapsed.count());
  }
  void count(const std::string& part, double flops) { add(flops_, part, flops); }

  void write(nlohmann::json& record) const {
    record["phases"] = seconds_;
    record["flops"] = flops_;
  }

 private:
  static void add(nlohmann::json& sums, const std::string& part, double value) {
    sums[part] = sums.value(part, 0.0) + value;
  }

  Backend& backend_;
  nlohmann::json seconds_ = nlohmann::json::object();
  nlohmann::json flops_ = nlohmann::json::object();
};

}  // namespace roundhouse
