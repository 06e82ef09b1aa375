#include "pipeline/run/run_folder.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <system_error>

#include <fmt/format.h>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/packed_file.h"
#include "base/process.h"
#include "base/write_guard.h"
#include "model/checkpoint/checkpoint.h"
#include "model/model_config.h"
#include "model/tokenizer/tokenizer.h"
#include "pipeline/run/sealed_json.h"
#include "pipeline/time_now.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

// Enters every hash, so that a change of what is computed or stored makes old records foreign.
constexpr const char* kVersion = "roundhouse 2";

std::string reason() { return std::generic_category().message(errno); }

// A lock on the whole file that goes with the descriptor. Works between processes of one machine
// and, unlike flock(), between machines on every network file system that knows fcntl() locks.
bool lock_descriptor(int descriptor, int command) {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  int result = 0;
  do {
    result = ::fcntl(descriptor, command, &lock);
  } while (result != 0 && errno == EINTR);
  return result == 0;
}

void write_all(int descriptor, std::string_view text, const fs::path& path) {
  while (!text.empty()) {
    const ssize_t part = ::write(descriptor, text.data(), text.size());
    if (part < 0 && errno == EINTR) continue;
    if (part < 0) {
      const bool full = errno == ENOSPC || errno == EDQUOT;
      throw Error("cannot write " + path.string() + ": " + (full ? "disk full: " : "") + reason());
    }
    text.remove_prefix(static_cast<std::size_t>(part));
  }
}

constexpr const char* kIdentity = "identity.json";
constexpr const char* kJournal = "journal.jsonl";
constexpr const char* kText = "calibration.text";
constexpr const char* kOtherTexts = "calibrations.text";
constexpr const char* kTokenizer = "tokenizer";

void write_if_other(const fs::path& path, const std::string& text) {
  std::error_code ignored;
  if (fs::is_regular_file(path, ignored) && read_text_file(path) == text) return;
  write_text_atomically(path, text);
}

// A line of the journal ends with the hash of all of it before, and says the one at the end of the line before it ("after").
constexpr std::string_view kCheck = ",\"check\":\"";
constexpr std::size_t kCheckDigits = 32;
constexpr std::size_t kLineEndBytes = kCheck.size() + kCheckDigits + 3;  // "}\n

std::string sealed_line(nlohmann::json event, const std::string& after) {
  event.erase("check");
  event["after"] = after;
  std::string text = event.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  const std::string check = xxh3_hex(text);
  text.pop_back();
  return text.append(kCheck).append(check).append("\"}\n");
}

// The hash at the end of a line; empty if this is none.
std::string check_at(std::string_view line) {
  if (line.size() < kLineEndBytes) return "";
  line.remove_prefix(line.size() - kLineEndBytes);
  if (!line.starts_with(kCheck) || !line.ends_with("\"}\n")) return "";
  return std::string(line.substr(kCheck.size(), kCheckDigits));
}

// Null if it is not what was written.
nlohmann::json parse_line(std::string_view line) {
  const std::string check = check_at(line);
  if (check.empty()) return {};
  const std::string text = std::string(line.substr(0, line.size() - kLineEndBytes)) + "}";
  if (xxh3_hex(text) != check) return {};
  nlohmann::json event = nlohmann::json::parse(text, nullptr, false);
  return event.is_object() ? event : nlohmann::json();
}

// The first line of all that is hashed into an identity.
std::string model_line(const RunInputs& inputs) {
  return std::string(kVersion) + "\nmodel " + inputs.model + "\n";
}

std::string calibration_text(const RunConfig& config, const RunInputs& inputs,
                             const std::string& set) {
  std::string text = model_line(inputs) + kTokenizer + " " + inputs.tokenizer + "\n" + kText + " " +
                     inputs.text_of(set) + "\n";
  RunConfig alone;  // whatever the set is called, its keys are those of the default
  alone.calibration = calibration_set(config, set);
  for (const auto& [key, value] : result_keys(alone)) text += key + " " + value + "\n";
  return text;
}

// Of what is made of activations.
std::string precision_line(const RunConfig& config) {
  return config.cpu_bf16 ? "cpu_precision bf16\n" : "";
}

// Has anything been made with the run's settings? What every start writes does not count.
bool has_products(const fs::path& run) {
  bool found = false;
  visit_below(run, [&](const fs::directory_entry& entry) {
    const fs::path path = entry.path().lexically_relative(run);
    found = found || path.extension() == ".h5" || *path.begin() == "export" ||
            *path.begin() == "results";
    return !found;
  });
  return found;
}

// What differs, in words.
std::vector<std::string> compare(const RunIdentity& before, const RunConfig& config,
                                 const RunInputs& inputs) {
  std::vector<std::string> other = differences(before.keys, result_keys(config));
  if (before.inputs.model != inputs.model) {
    other.push_back("model: the files in " + config.model.string() +
                    " are not those that the run began with");
  }
  if (before.inputs.tokenizer != inputs.tokenizer) {
    other.push_back("tokenizer: its files in " + config.model.string() +
                    " are not those that the run began with");
  }
  std::vector<std::string> sets = {kDefaultCalibration};
  for (const auto& [name, set] : config.calibrations) sets.push_back(name);
  for (const std::string& set : sets) {
    const std::string& was = before.inputs.text_of(set);
    const std::string& is = inputs.text_of(set);
    if (was.empty() || is.empty() || was == is) continue;
    const SampleOptions& options = calibration_set(config, set);
    other.push_back(options.keys + ".text: " + options.text.string() +
                    " does not hold the text that the run began with");
  }
  return other;
}

}  // namespace

const std::string& RunInputs::text_of(const std::string& set) const {
  static const std::string none;
  if (set == kDefaultCalibration) return calibration_text;
  const auto found = other_texts.find(set);
  return found != other_texts.end() ? found->second : none;
}

nlohmann::json to_json(const RunInputs& inputs) {
  nlohmann::json json = {{"model", inputs.model},
                         {kTokenizer, inputs.tokenizer},
                         {kText, inputs.calibration_text},
                         {"blocks", inputs.blocks}};
  if (!inputs.other_texts.empty()) json[kOtherTexts] = inputs.other_texts;
  return json;
}

RunInputs inputs_from_json(const nlohmann::json& json) {
  RunInputs inputs;
  inputs.model = json.at("model").get<std::string>();
  inputs.tokenizer = json.at(kTokenizer).get<std::string>();
  inputs.calibration_text = json.at(kText).get<std::string>();
  inputs.blocks = json.at("blocks").get<int>();
  if (json.contains(kOtherTexts))
    inputs.other_texts = json.at(kOtherTexts).get<std::map<std::string, std::string>>();
  return inputs;
}

RunInputs read_inputs(const RunConfig& config) {
  RunInputs inputs{.model = model_fingerprint(config.model),
                   .tokenizer = tokenizer_content(config.model),
                   .calibration_text = {},
                   .blocks = static_cast<int>(read_model_config(config.model).blocks)};
  std::map<fs::path, std::string> hashes;  // sets may share a text
  const auto hash_of = [&](const SampleOptions& set) -> std::string {
    std::error_code ignored;
    if (set.text.empty() || !fs::exists(set.text, ignored)) return "";
    std::string& hash = hashes[set.text];
    if (hash.empty()) hash = xxh3_hex_of_content(set.text);
    // What writes conversations down is among the tokenizer's files, or in one of its own.
    const fs::path chat = config.model / "chat_template.jinja";
    if (set.text_key == SampleOptions().text_key || !fs::exists(chat, ignored)) return hash;
    return xxh3_hex(hash + " " + xxh3_hex_of_file(chat));
  };
  inputs.calibration_text = hash_of(config.calibration);
  for (const auto& [name, set] : config.calibrations) inputs.other_texts[name] = hash_of(set);
  return inputs;
}

FoundIdentity read_identity(const fs::path& run) {
  const SealedJson sealed = read_sealed_json(run / kIdentity, kIdentity);
  if (!sealed.object) return {std::nullopt, sealed.why};
  try {
    const nlohmann::json& json = *sealed.object;
    RunIdentity identity;
    identity.inputs = inputs_from_json(json);
    identity.keys = json.at("keys").get<std::map<std::string, std::string>>();
    identity.config = json.at("config").get<std::string>();
    return {std::move(identity), ""};
  } catch (const nlohmann::json::exception& error) {
    return {std::nullopt, error.what()};
  }
}

void require_run_folder(const fs::path& run) {
  // Only what is not there: a pipe, a folder or a file without permission in its place is named by
  // what reads it.
  std::error_code ignored;
  if (fs::symlink_status(run / "config.yaml", ignored).type() == fs::file_type::not_found)
    throw InputError(run.string() + " is not the folder of a run: it has no config.yaml");
}

std::vector<std::string> other_settings(const RunConfig& config) {
  const FoundIdentity before = read_identity(config.run);
  if (!before.identity || !has_products(config.run)) return {};
  return differences(before.identity->keys, result_keys(config));
}

Settled compare_with_run(const RunConfig& config, RunInputs inputs) {
  std::vector<Damaged> damaged;
  const FoundIdentity before = read_identity(config.run);
  if (before.identity) {
    const std::vector<std::string> other = compare(*before.identity, config, inputs);
    if (!other.empty() && !has_products(config.run)) return {std::move(inputs), {}};
    if (!other.empty()) {
      throw InputError(fmt::format(
          "{} was made with other settings: {}. Use another run folder, or put the old {} back",
          config.run.string(), fmt::join(other, "; "), other.size() == 1 ? "value" : "values"));
    }
    if (inputs.calibration_text.empty())
      inputs.calibration_text = before.identity->inputs.calibration_text;
    // Of sets that are gone, too: they may come back.
    for (const auto& [name, text] : before.identity->inputs.other_texts) {
      std::string& now = inputs.other_texts[name];
      if (now.empty()) now = text;
    }
    const fs::path yaml = config.run / "config.yaml";
    std::error_code ignored;
    const bool whole =
        fs::is_regular_file(yaml, ignored) && xxh3_hex_of_file(yaml) == before.identity->config;
    if (!whole) damaged.push_back({"config.yaml", "it is not what was written"});
  } else if (before.why != "missing") {
    damaged.push_back({kIdentity, before.why});
  }
  return {std::move(inputs), std::move(damaged)};
}

Settled settle_config(const RunConfig& config, RunInputs given) {
  Settled settled = compare_with_run(config, std::move(given));
  const RunInputs& inputs = settled.inputs;
  std::map<std::string, std::string> keys = result_keys(config);
  // A recipe that was taken out and comes back must still be the same one.
  if (const FoundIdentity before = read_identity(config.run);
      before.identity && has_products(config.run))
    keys.insert(before.identity->keys.begin(), before.identity->keys.end());
  const std::string text = to_yaml(config);
  write_if_other(config.run / "config.yaml", text);
  nlohmann::json identity = to_json(inputs);
  identity["keys"] = keys;
  identity["config"] = xxh3_hex(text);
  write_sealed_json(config.run / kIdentity, kIdentity, identity);
  return settled;
}

std::string model_fingerprint(const fs::path& model) {
  constexpr std::size_t kSample = 4096;  // bytes of each tensor
  const Checkpoint checkpoint(model);
  Xxh3 hash;
  const auto add = [&hash](std::span<const std::byte> bytes) {
    const std::uint64_t length = bytes.size();
    hash.update(
        std::as_bytes(std::span(&length, 1)));  // so that neighbours cannot run into each other
    hash.update(bytes);
  };
  const std::string config = read_text_file(model / "config.json");
  add(std::as_bytes(std::span(config)));
  for (const std::string& name : checkpoint.names()) {
    const HostView view = checkpoint.view(name);
    const std::string what =
        fmt::format("{} {} [{}]", name, name_of(view.type), fmt::join(view.shape, ","));
    add(std::as_bytes(std::span(what)));
    add(view.bytes.first(std::min(kSample, view.bytes.size())));
    // The kernel maps more around what is touched: with every tensor's, memory would grow with the number of blocks.
    for (const TensorFile* file : checkpoint.files()) file->release_pages();
  }
  return hash.hex();
}

std::string recipe_identity(const RunConfig& config, const RunInputs& inputs,
                            const Recipe& recipe) {
  const std::string& set = recipe.calibration;
  std::string base =
      recipe.needs.calibration() ? calibration_text(config, inputs, set) : model_line(inputs);
  // Gradients are of the default set's text.
  if (recipe.needs.gradients && set != kDefaultCalibration)
    base += calibration_text(config, inputs, kDefaultCalibration);
  if (recipe.needs.calibration()) base += precision_line(config);
  return xxh3_hex(base + resolved(recipe).dump());
}

std::string calibration_identity(const RunConfig& config, const RunInputs& inputs,
                                 const std::string& set) {
  return xxh3_hex(calibration_text(config, inputs, set));
}

std::string stream_identity(const RunConfig& config, const RunInputs& inputs,
                            const std::string& set) {
  return xxh3_hex(calibration_text(config, inputs, set) + precision_line(config));
}

Journal::Journal(const fs::path& run, int rank)
    : path_(run / kJournal), rank_(rank), host_(host_name()) {
  if (const char* job = std::getenv("SLURM_JOB_ID")) job_ = job;
  std::error_code ignored;
  const std::uintmax_t size = fs::file_size(path_, ignored);
  if (!ignored) counted_bytes_ = static_cast<std::int64_t>(size);
}

void Journal::append(nlohmann::json event) {
  for (const char* const ours : {"time", "rank", "host", "job"}) {
    require(!event.contains(ours), "a journal's event brings a key of the journal's own");
  }
  pass_write_guard();
  event["time"] = time_now();
  event["rank"] = rank_;
  event["host"] = host_;
  if (!job_.empty()) event["job"] = job_;
  const Descriptor owner = open_regular_file(path_, O_RDWR | O_CREAT | O_APPEND);
  const int descriptor = owner.get();
  // Over a network file system O_APPEND alone can lose lines. Where there are no locks it has to
  // do.
  lock_descriptor(descriptor, F_OFD_SETLKW);
  // A process that was killed while it wrote left its last line without an end.
  const off_t size = ::lseek(descriptor, 0, SEEK_END);
  std::string end(std::min<std::size_t>(kLineEndBytes, static_cast<std::size_t>(size)), '\0');
  const ssize_t got = ::pread(descriptor, end.data(), end.size(), size - std::ssize(end));
  end.resize(static_cast<std::size_t>(std::max<ssize_t>(got, 0)));
  const std::string line = sealed_line(std::move(event), check_at(end));
  write_all(descriptor, end.empty() || end.ends_with('\n') ? line : "\n" + line, path_);
}

std::vector<nlohmann::json> Journal::read_new() {
  std::vector<nlohmann::json> events;
  if (!fs::exists(path_)) return events;
  LineReader file(path_, static_cast<std::uint64_t>(counted_bytes_));
  // A line that has no end yet is for the next call.
  for (std::string line; file.next(line) && file.ended();) {
    counted_bytes_ += static_cast<std::int64_t>(line.size()) + 1;
    nlohmann::json event = nlohmann::json::parse(line, nullptr, false);
    if (event.is_object()) events.push_back(std::move(event));
  }
  return events;
}

JournalCheck check_journal(const fs::path& run) {
  JournalCheck check;
  const fs::path path = run / kJournal;
  if (!fs::is_regular_file(path)) {
    check.faults.push_back("missing");
    return check;
  }
  const std::string text = read_text_file(path);
  std::string before;
  int number = 0;
  for (std::string_view rest = text; !rest.empty();) {
    const std::size_t end = std::min(rest.find('\n'), rest.size() - 1) + 1;
    const std::string_view line = rest.substr(0, end);
    rest.remove_prefix(end);
    ++number;
    const nlohmann::json event = parse_line(line);
    if (event.is_null()) {
      check.faults.push_back(fmt::format("line {} is damaged", number));
      check.damaged += line;
      continue;
    }
    if (event.value("after", "") != before) {
      check.faults.push_back(fmt::format("lines are missing before line {}", number));
    }
    before = check_at(line);
    check.checks.push_back(before);
    check.events.push_back(event);
  }
  return check;
}

std::string repair_journal(const fs::path& run) {
  JournalCheck check = check_journal(run);
  if (check.faults.empty() || check.faults.front() == "missing") return "";
  if (!check.damaged.empty()) {
    const fs::path aside = run / "journal.damaged";
    std::error_code ignored;
    std::string text = fs::exists(aside, ignored) ? read_text_file(aside) : "";
    text += check.damaged;
    if (!text.ends_with('\n')) text += '\n';
    write_text_atomically(aside, text);
  }
  std::string text, before;
  for (nlohmann::json& event : check.events) {
    const std::string line = sealed_line(std::move(event), before);
    before = check_at(line);
    text += line;
  }
  write_text_atomically(run / kJournal, text);
  return check.faults.front();
}

std::vector<nlohmann::json> read_journal(const fs::path& run) {
  std::vector<nlohmann::json> events;
  const fs::path path = run / kJournal;
  if (!fs::exists(path)) return events;
  LineReader file(path);
  for (std::string line; file.next(line);) {
    nlohmann::json event = nlohmann::json::parse(line, nullptr, false);
    if (event.is_object()) events.push_back(std::move(event));
  }
  return events;
}

}  // namespace roundhouse
