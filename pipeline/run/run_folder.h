// A run's folder: its config, its journal. Who may write into it: lease.h.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "pipeline/config/config.h"

namespace roundhouse {

// What the results of a run depend on besides its settings: the content of files, as hashes. Paths do not count.
struct RunInputs {
  std::string model;      // model_fingerprint()
  std::string tokenizer;  // tokenizer_content()
  std::string
      calibration_text;  // of the file; empty: there is none in the config, or the file is gone
  int blocks = 0;        // of the model
  std::map<std::string, std::string> other_texts =
      {};  // the same of further calibration sets, by name
  const std::string& text_of(const std::string& set) const;
};
RunInputs read_inputs(const RunConfig& config);

// RUN/identity.json, as verify sees it.
struct RunIdentity {
  RunInputs inputs;
  std::map<std::string, std::string> keys;  // result_keys() of all recipes that there ever were
  std::string config;                       // xxh3_hex() of RUN/config.yaml
};
struct FoundIdentity {
  std::optional<RunIdentity> identity;
  std::string why;  // if there is none: "missing", or what is wrong with it
};
FoundIdentity read_identity(const std::filesystem::path& run);

// By which settings the run that is there differs from this config, in words; none, where nothing is made yet.
std::vector<std::string> other_settings(const RunConfig& config);

// Throws InputError where that is no folder of a run: before anything looks into it, or writes.
void require_run_folder(const std::filesystem::path& run);

struct Damaged {
  std::string file, why;
};
struct Settled {
  RunInputs inputs;              // with the text that the run began with, if its file is gone
  std::vector<Damaged> damaged;  // identity.json, config.yaml: written anew
};
// Throws InputError naming what differs from what the run was made with, and what to do. Writes nothing. Where nothing is made yet (no
// record, export or result) other settings are as good.
Settled compare_with_run(const RunConfig& config, RunInputs inputs);
// First start: writes RUN/config.yaml (resolved) and RUN/identity.json {inputs, result keys}, sealed. Later: compare_with_run().
// A damaged one is written anew: records carry their own identity.
Settled settle_config(const RunConfig& config, RunInputs inputs);

// Changes when the model does: its config.json, the name, type and shape of every tensor, and its
// first 4 KiB. Another cut into files is the same model. What lies behind these 4 KiB: model_identity.h.
std::string model_fingerprint(const std::filesystem::path& model);

// What the records of a recipe, and the calibration record, depend on.
std::string recipe_identity(const RunConfig& config, const RunInputs& inputs, const Recipe& recipe);
// Of a calibration set: what it holds counts, not what it is called.
std::string calibration_identity(const RunConfig& config, const RunInputs& inputs,
                                 const std::string& set = kDefaultCalibration);
// Of what is computed from the samples of a set and belongs to no recipe: its full-precision stream, gradients.
std::string stream_identity(const RunConfig& config, const RunInputs& inputs,
                            const std::string& set = kDefaultCalibration);
// As text and back, from one rank to another.
nlohmann::json to_json(const RunInputs& inputs);
RunInputs inputs_from_json(const nlohmann::json& json);  // throws nlohmann::json::exception

// RUN/journal.jsonl: each event is one line, appended by a single write() under a lock, so that
// ranks on several nodes may share it. Adds "time" (ISO 8601, UTC), "rank", "host" and, under Slurm, "job" (its id), of which no
// event has one of its own; "after" (the check of the line before) and "check" (the
// XXH3-128 of the line without it), so that a line that was changed, and lines that are gone, are seen.
class Journal {
 public:
  explicit Journal(const std::filesystem::path& run, int rank = 0);
  void append(nlohmann::json event);
  // Events that any process appended since the last call, or since this object was made.
  std::vector<nlohmann::json> read_new();

 private:
  std::filesystem::path path_;
  int rank_;
  std::string host_;
  std::string job_;  // empty: not under Slurm
  std::int64_t counted_bytes_ = 0;
};
std::vector<nlohmann::json> read_journal(const std::filesystem::path& run);  // skips torn lines

struct JournalCheck {
  std::vector<std::string>
      faults;  // "line 7 is damaged", "lines are missing before line 9", "missing"
  std::vector<nlohmann::json> events;  // of whole lines
  std::vector<std::string> checks;     // theirs
  std::string damaged;                 // the lines that are not
};
JournalCheck check_journal(const std::filesystem::path& run);
// Puts damaged lines aside, at the end of RUN/journal.damaged, and links the others anew. Returns what was wrong: empty, if
// nothing was. Only for the holder of the run's lease, before anybody writes.
std::string repair_journal(const std::filesystem::path& run);

}  // namespace roundhouse
