// For benchmarks and measurements: nobody watches, and the last fact of the work is kept.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include "stages/flow/monitor.h"

namespace roundhouse {

class LastFact final : public Monitor {
 public:
  void phase(const std::string&) override {}
  void tick() override {}
  void event(const nlohmann::json& fact) override { last = fact; }
  void say(const std::string&) override {}
  bool stop_requested() override { return false; }

  nlohmann::json last;
};

}  // namespace roundhouse
