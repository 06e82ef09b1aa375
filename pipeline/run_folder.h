// A run's folder: its lock, its config, its journal.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "base/unique.h"
#include "pipeline/config.h"

namespace roundhouse {

// Holds RUN/lock (an fcntl lock, which network file systems know) until it goes or the process
// dies. Throws Error if another process holds it, naming its host, pid and start time as written in
// the file. One process a job takes it: rank 0.
class RunLock {
 public:
  explicit RunLock(const std::filesystem::path& run);
  ~RunLock();
  RunLock(RunLock&&) noexcept;

 private:
  int fd_ = -1;
};

// First start: writes RUN/config.yaml (resolved) and RUN/identity.json {model fingerprint, result
// keys}. Later: compares; throws InputError naming the keys that differ and what to do.
// `fingerprint` is that of the model's files (model_fingerprint()).
void settle_config(const RunConfig& config, const std::string& fingerprint);

// Before the first block is quantized: notes the kind of device ("cpu", "cuda") in identity.json, after settle_config() wrote
// it. Throws InputError if blocks were quantized on another kind, whose arithmetic differs. Exporting and evaluating go anywhere.
void settle_device(const std::filesystem::path& run, const std::string& device);

// Changes when the model does: its config.json, the name, type and shape of every tensor, and its
// first 4 KiB. Another cut into files is the same model.
std::string model_fingerprint(const std::filesystem::path& model);

// What the records of a recipe, and the calibration record, depend on.
std::string recipe_identity(const RunConfig& config, const std::string& fingerprint,
                            const Recipe& recipe);
std::string calibration_identity(const RunConfig& config, const std::string& fingerprint);

// RUN/journal.jsonl: each event is one line, appended by a single write() under a lock, so that
// ranks on several nodes may share it. Adds "time" (ISO 8601, UTC), which no event has of its own.
class Journal {
 public:
  explicit Journal(const std::filesystem::path& run);
  void append(nlohmann::json event);
  // Events of this kind ({"event": kind}) that any process appended since the last call, or since
  // this object was made.
  int count_new(const std::string& kind);

 private:
  std::filesystem::path path_;
  std::int64_t counted_bytes_ = 0;
};
std::vector<nlohmann::json> read_journal(const std::filesystem::path& run);  // skips torn lines

}  // namespace roundhouse
