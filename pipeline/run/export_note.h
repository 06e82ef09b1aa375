// Beside an export lies a note of what it was made from; with it a finished one is known and not written again.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace roundhouse {

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

// Of an export that is whole: what it was made of. Seals it with `key`.
struct ExportNote {
  std::string identity, settings, model;
};
void write_export_note(const std::filesystem::path& directory, const std::string& key,
                       const ExportNote& note);

}  // namespace roundhouse
