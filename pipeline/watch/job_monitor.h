// The Monitor of a real job: watchdog, journal, progress line, signals, time limit.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "comm/communicator.h"
#include "comm/watchdog.h"
#include "pipeline/run/run_folder.h"
#include "stages/flow/monitor.h"

namespace roundhouse {

class JobMonitor final : public Monitor {
 public:
  // Collective over `world` (it makes the watchdog). Handles SIGTERM, SIGUSR1 and SIGINT as a wish
  // to stop, until it goes.
  JobMonitor(Communicator& world, Journal* journal, double stall_seconds, double time_limit_minutes,
             double silence_seconds = 30);
  ~JobMonitor() override;

  // Work of the whole run in units (recipe x block), and all that is left by kind, for time left: TimeLeft's plan. One rank of a
  // team calls unit_done(), after the unit's {"event": "block"} is in the journal: by these each
  // rank counts what all teams have done.
  void plan_units(int total, int already_done, const nlohmann::json& plan);
  void unit_done(const std::string& what, double seconds);

  void phase(const std::string& what) override;
  void tick() override;
  void event(const nlohmann::json& fact) override;
  void say(const std::string& line) override;
  bool stop_requested() override;

  Watchdog& watchdog();
  void write_to(Journal* journal) const;  // events, from here on
  // Called by every tick(): lets transfers under way make progress.
  void on_tick(std::function<void()> callback);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace roundhouse
