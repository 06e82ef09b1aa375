// What the journal says of a run, for its report. Lines come from outside: what is not as it should be is left out, never trusted.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "stages/report/report.h"

namespace roundhouse {

// Seconds since 1970 of "2026-11-28T03:39:54.587Z"; nothing if it is not such a text.
std::optional<double> seconds_since_1970(const std::string& time);

// Of a recipe's blocks, each as it was made last.
struct RecipeFacts {
  double bits_per_weight = 0, sparse_bits_per_weight = 0, relative_error = 0;  // means over blocks
  double outside_bits_per_weight = 0;  // of linears outside the blocks; 0: none is quantized
  double seconds = 0;
  std::map<std::string, double> phases;
  BlockErrors errors;
  int fallbacks = 0;
  std::vector<std::string> lines;  // fallbacks and dropped samples, in words
};

struct JournalFacts {
  std::map<std::string, RecipeFacts> recipes;
  std::vector<Span> spans;
  std::vector<Transfer> transfers;
  std::vector<std::string>
      remarks;  // other kinds of device, damage, memory that could not be pinned
  std::set<std::string> hosts, slurm_jobs, devices, programs, meshes, gpus;
  std::string first, last;  // times
};

// `blocks`: of the model. The unit behind the last is what a recipe includes outside the blocks; events of others are left out.
JournalFacts read_journal_facts(const std::vector<nlohmann::json>& events, int blocks);

}  // namespace roundhouse
