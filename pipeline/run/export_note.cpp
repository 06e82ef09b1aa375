#include "pipeline/run/export_note.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdint>

#include "base/file.h"
#include "base/hash.h"
#include "pipeline/run/sealed_json.h"
#include "stages/export/sha256sums.h"

namespace roundhouse {
namespace {

std::int64_t nanoseconds(const timespec& time) {
  return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

// Lengths of the files of an export, by name.
nlohmann::json lengths_of_files(const std::filesystem::path& directory) {
  nlohmann::json lengths = nlohmann::json::object();
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory)) {
    if (entry.is_regular_file())
      lengths[entry.path().lexically_relative(directory).generic_string()] = entry.file_size();
  }
  return lengths;
}

// No file was added, lost, cut or changed since the note was written.
bool is_untouched(const std::filesystem::path& directory, const std::filesystem::path& note,
                  const nlohmann::json& lengths) {
  struct stat facts {};
  if (!lengths.is_object() || ::stat(note.c_str(), &facts) != 0) return false;
  const std::int64_t noted = nanoseconds(facts.st_ctim);
  if (lengths_of_files(directory) != lengths) return false;
  return std::ranges::all_of(lengths.items(), [&](const auto& item) {
    return ::stat((directory / item.key()).c_str(), &facts) == 0 &&
           nanoseconds(facts.st_ctim) <= noted;
  });
}

}  // namespace

std::filesystem::path export_note_path(const std::filesystem::path& directory) {
  return directory.parent_path() / (directory.filename().string() + ".json");
}

ExportCheck check_export(const std::filesystem::path& directory, const std::string& key,
                         Hashing hashing, const std::function<void()>& tick) {
  ExportCheck check;
  (void)bytes_of_file(directory /
                      "SHA256SUMS");  // it may just have been renamed on another machine
  if (!std::filesystem::is_directory(directory)) check.faults.push_back("missing");
  const std::filesystem::path note = export_note_path(directory);
  const SealedJson sealed = read_sealed_json(note, key);
  const auto text = [&](const char* name) { return sealed.object->value(name, std::string()); };
  if (!sealed.object) {
    check.faults.push_back(note.filename().string() + ": " + sealed.why);
  } else {
    check.noted = true;
    check.identity = text("identity");
    check.settings = text("settings");
    check.model = text("model");
  }
  if (!std::filesystem::is_directory(directory)) return check;
  const std::filesystem::path sums = directory / "SHA256SUMS";
  if (sealed.object && std::filesystem::is_regular_file(sums) &&
      sha256_hex_of_file(sums) != text("sums")) {
    check.faults.push_back("SHA256SUMS: damaged");
  }
  if (hashing == Hashing::kUnlessUntouched && check.faults.empty() &&
      is_untouched(directory, note, sealed.object->value("bytes", nlohmann::json()))) {
    return check;
  }
  for (std::string& fault : verify_checkpoint(directory, tick))
    check.faults.push_back(std::move(fault));
  if (hashing == Hashing::kUnlessUntouched && check.faults.empty()) {
    ::utimensat(AT_FDCWD, note.c_str(), nullptr, 0);  // a hint: the next look need not hash again
  }
  return check;
}

void write_export_note(const std::filesystem::path& directory, const std::string& key,
                       const ExportNote& note) {
  write_sealed_json(export_note_path(directory), key,
                    {{"identity", note.identity},
                     {"settings", note.settings},
                     {"model", note.model},
                     {"sums", sha256_hex_of_file(directory / kSums)},
                     {"bytes", lengths_of_files(directory)}});
}

}  // namespace roundhouse
