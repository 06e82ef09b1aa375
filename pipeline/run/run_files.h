// Where things lie in a run's folder.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace roundhouse {

inline std::filesystem::path results_path(const std::filesystem::path& run,
                                          const std::string& recipe) {
  return run / "results" / (recipe + ".json");
}
// Of a task, document by document: JSON lines.
inline std::filesystem::path answers_path(const std::filesystem::path& run,
                                          const std::string& recipe, const std::string& task) {
  return run / "results" / recipe / (task + ".jsonl");
}
// The record of a calibration set's token windows: "calibration" of the default, "calibration-awq".
inline std::string calibration_key(const std::string& set) {
  return set == "default" ? "calibration" : "calibration-" + set;
}
// Of all records but those of calibration sets.
inline std::vector<std::string> record_folders() { return {"recipes", "activations", "gradients"}; }
inline constexpr const char* kReportFile = "report.json";  // hashes of the files in RUN/report
inline constexpr const char* kOriginal = "original";  // the unquantized model among the results

inline std::string results_key(const std::string& recipe) { return "results/" + recipe + ".json"; }

}  // namespace roundhouse
