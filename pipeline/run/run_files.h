// Where things lie in a run's folder.
#pragma once

#include <filesystem>
#include <functional>
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
inline constexpr const char* kReportFile = "report.json";  // hashes of the files in RUN/report
inline constexpr const char* kOriginal = "original";  // the unquantized model among the results

inline std::string results_key(const std::string& recipe) { return "results/" + recipe + ".json"; }

// An export's note, beside it: DIRECTORY.json {identity, settings, model, sums, bytes: {file: its length}}, sealed.
std::filesystem::path export_note_path(const std::filesystem::path& directory);
struct ExportCheck {
  std::vector<std::string> faults;        // empty: whole. Each names a file, or is "missing"
  bool noted = false;                     // its note is whole: the directory is ours
  std::string identity, settings, model;  // what the note says that it was made of
};
// kUnlessUntouched: files that have the length that the note says, and have not changed since it was written (by their time of
// the last change of state, which cannot be set back), are taken for what was written; where one is not, all are hashed.
enum class Hashing { kAll, kUnlessUntouched };
// `key` is that of the note's seal: "export/RECIPE/FORMAT", wherever the directory is.
ExportCheck check_export(
    const std::filesystem::path& directory, const std::string& key, Hashing hashing = Hashing::kAll,
    const std::function<void()>& tick = [] {});

}  // namespace roundhouse
