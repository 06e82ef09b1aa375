// A schedule in time: when each stage does what, and waits for whom.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "pipeline/plan/cost_model.h"
#include "pipeline/schedule/planner.h"

namespace roundhouse {

struct Interval {
  double begin, end;   // seconds
  double work;         // of these, so much of the team's ranks' time
  std::size_t recipe;  // whose
};

struct Simulation {
  double seconds = 0;                         // of the job
  std::vector<std::vector<Interval>> stages;  // in order; between them a stage waits
  std::map<std::string, double> phases;       // seconds of teams, waiting among them
  std::vector<double>
      recipe_seconds;  // of teams, by recipe; gradients count for the first that waits for them
  std::vector<double> finished_at;  // by recipe: quantized
  double snapshot_bytes = 0;        // written
  // Of evaluations, by the walks of all models:
  double evaluation_messages = 0, evaluation_sent = 0;  // sent: bytes
  double evaluation_read = 0;                           // bytes of files
  double utilisation = 0;  // of all ranks: computing, loading or committing
};

Simulation simulate(const std::vector<std::vector<Step>>& stages, const CostModel& costs);

}  // namespace roundhouse
