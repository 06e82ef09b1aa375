// What a stage tells the outside while it works, and what the outside may ask of it. Implemented by the pipeline.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include <nlohmann/json.hpp>

namespace roundhouse {

class Monitor {
 public:
  virtual ~Monitor() = default;
  // What this rank does now, for the watchdog and the progress line.
  virtual void phase(const std::string& what) = 0;
  // A little work is done. Often (every micro-batch): proves that this rank is alive and lets transfers progress.
  virtual void tick() = 0;
  // A fact for the journal, from the one rank that is to report it: {"event": "...", ...}.
  virtual void event(const nlohmann::json& fact) = 0;
  // One line for people, from the one rank that is to report it.
  virtual void say(const std::string& line) = 0;
  // A signal or a time limit asks to end after the unit in flight.
  virtual bool stop_requested() = 0;
};

// Does nothing: for tests and small tools.
class NullMonitor : public Monitor {
 public:
  void phase(const std::string&) override {}
  void tick() override {}
  void event(const nlohmann::json&) override {}
  void say(const std::string&) override {}
  bool stop_requested() override { return false; }
};

}  // namespace roundhouse
