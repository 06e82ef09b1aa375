// One run's part of a report, from its folder: config, results, journal.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "stages/report/report.h"

namespace roundhouse {

struct RunFigures {
  ReportRun run;
  std::vector<ReportRow> rows;            // the original first, if it was measured
  std::vector<std::string> texts, tasks;  // in the config's order, then others that were measured
  std::string model;                      // hash: which runs are of the same
  std::map<std::string, nlohmann::json> settings;  // by text or task: what its figures depend on
};

// "limit 7, not 0", ...: what of a figure's settings is not as in another's, of a model with the same tokenizer or not.
std::vector<std::string> differing_settings(const nlohmann::json& settings,
                                            const nlohmann::json& other, bool same_tokenizer);

// Throws InputError if there is no config in the folder.
RunFigures read_run_figures(const std::filesystem::path& run);

}  // namespace roundhouse
