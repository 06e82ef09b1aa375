// JSON files of a run that prove by themselves that they are whole and in their place, as records do.
//
// The object has one more key, "seal": the XXH3-128 of the file's key (its path inside the run) and
// of the other keys' text. A file counts only if it is, byte for byte, what was written.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include <nlohmann/json.hpp>

namespace roundhouse {

// Writes an object; `key` is the file's path inside the run, wherever that is.
void write_sealed_json(const std::filesystem::path& path, const std::string& key,
                       nlohmann::json object);

struct SealedJson {
  std::optional<nlohmann::json> object;  // without its seal
  std::string why;                       // if there is none: "missing", or what is wrong
};
// Throws Error if the file is there and cannot be read.
SealedJson read_sealed_json(const std::filesystem::path& path, const std::string& key);

}  // namespace roundhouse
