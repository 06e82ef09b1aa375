#include "pipeline/run_folder.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <system_error>

#include <fmt/chrono.h>
#include <fmt/format.h>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "model/checkpoint.h"
#include "stages/quantize/method.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

// Enters every hash, so that a change of what is computed or stored makes old records foreign.
constexpr const char* kVersion = "roundhouse 1";

std::string reason() { return std::generic_category().message(errno); }

// ISO 8601, UTC, with milliseconds.
std::string time_now() {
  using namespace std::chrono;
  const auto now = floor<milliseconds>(system_clock::now());
  const auto part = (now - floor<seconds>(now)).count();
  return fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:03}Z", fmt::gmtime(system_clock::to_time_t(now)),
                     part);
}

std::string host_name() {
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  return name.data();
}

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

nlohmann::json read_identity(const fs::path& path) {
  nlohmann::json identity =
      nlohmann::json::parse(read_text_file(path, std::size_t{64} << 20), nullptr, false);
  const bool whole = identity.is_object() && identity.contains("model") &&
                     identity["model"].is_string() && identity.contains("keys") &&
                     identity["keys"].is_object();
  if (whole) {
    bool text = true;
    for (const auto& value : identity["keys"]) text = text && value.is_string();
    if (text) return identity;
  }
  throw InputError(path.string() +
                   ": damaged. Delete it to go on: what was made with other settings is then "
                   "found by its own hash and made again");
}

void write_if_other(const fs::path& path, const std::string& text) {
  std::error_code ignored;
  if (fs::is_regular_file(path, ignored) && read_text_file(path) == text) return;
  write_text_atomically(path, text);
}

std::string calibration_text(const RunConfig& config, const std::string& fingerprint) {
  std::string text = std::string(kVersion) + "\nmodel " + fingerprint + "\n";
  for (const auto& [key, value] : result_keys(config)) {
    if (key.starts_with("calibration.")) text += key + " " + value + "\n";
  }
  return text;
}

}  // namespace

RunLock::RunLock(const fs::path& run) {
  const fs::path path = run / "lock";
  Descriptor owner = open_regular_file(path, O_RDWR | O_CREAT);
  fd_ = owner.get();

  if (!lock_descriptor(fd_, F_OFD_SETLK)) {
    if (errno != EAGAIN && errno != EACCES) {
      throw Error("cannot lock " + path.string() + ": " + reason() +
                  " (its file system needs locks: two jobs would spoil each other's work)");
    }
    std::array<char, 512> text{};
    const ssize_t length = ::pread(fd_, text.data(), text.size() - 1, 0);
    std::string holder(text.data(), length > 0 ? static_cast<std::size_t>(length) : 0);
    holder = holder.substr(0, holder.find('\n'));
    throw Error(run.string() + " is in use by " + (holder.empty() ? "another process" : holder));
  }
  const std::string holder =
      fmt::format("process {} on {} since {}\n", ::getpid(), host_name(), time_now());
  if (::ftruncate(fd_, 0) != 0) throw Error("cannot write " + path.string() + ": " + reason());
  write_all(fd_, holder, path);
  owner.release();
}

RunLock::~RunLock() {
  if (fd_ >= 0) ::close(fd_);
}

RunLock::RunLock(RunLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

void settle_config(const RunConfig& config, const std::string& fingerprint) {
  const fs::path path = config.run / "identity.json";
  std::map<std::string, std::string> keys = result_keys(config);
  nlohmann::json identity;
  std::error_code error;
  if (fs::exists(path, error)) {
    identity = read_identity(path);
    const auto before = identity["keys"].get<std::map<std::string, std::string>>();
    std::vector<std::string> other = differences(before, keys);
    if (identity["model"] != fingerprint) {
      other.push_back("model: the files in " + config.model.string() +
                      " are not those that the run began with");
    }
    if (!other.empty()) {
      throw InputError(fmt::format(
          "{} was made with other settings: {}. Use another run folder, or put the old {} back",
          config.run.string(), fmt::join(other, "; "), other.size() == 1 ? "value" : "values"));
    }
    // A recipe that was taken out and comes back must still be the same one.
    keys.insert(before.begin(), before.end());
  }
  write_if_other(config.run / "config.yaml", to_yaml(config));
  identity["model"] = fingerprint;
  identity["keys"] = keys;
  write_if_other(path, identity.dump(1) + "\n");
}

void settle_device(const fs::path& run, const std::string& device) {
  const fs::path path = run / "identity.json";
  nlohmann::json identity = read_identity(path);
  const nlohmann::json& before = identity["device"];
  if (before.is_string() && before != device) {
    throw InputError(
        fmt::format("{} was quantized with device {}, this would go on with {}: the two differ in "
                    "their last bits. "
                    "Use another run folder, or go on where there is such a device",
                    run.string(), before.get<std::string>(), device));
  }
  identity["device"] = device;
  write_if_other(path, identity.dump(1) + "\n");
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
  }
  return hash.hex();
}

std::string recipe_identity(const RunConfig& config, const std::string& fingerprint,
                            const Recipe& recipe) {
  const bool calibrated = make_method(recipe)->streams().any();
  const std::string base = calibrated ? calibration_text(config, fingerprint)
                                      : std::string(kVersion) + "\nmodel " + fingerprint + "\n";
  return xxh3_hex(base + resolved(recipe).dump());
}

std::string calibration_identity(const RunConfig& config, const std::string& fingerprint) {
  return xxh3_hex(calibration_text(config, fingerprint));
}

Journal::Journal(const fs::path& run) : path_(run / "journal.jsonl") {
  std::error_code ignored;
  const std::uintmax_t size = fs::file_size(path_, ignored);
  if (!ignored) counted_bytes_ = static_cast<std::int64_t>(size);
}

void Journal::append(nlohmann::json event) {
  require(!event.contains("time"), "a journal's event brings a \"time\" of its own");
  event["time"] = time_now();
  std::string line = event.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  const Descriptor owner = open_regular_file(path_, O_RDWR | O_CREAT | O_APPEND);
  const int descriptor = owner.get();
  // Over a network file system O_APPEND alone can lose lines. Where there are no locks it has to
  // do.
  lock_descriptor(descriptor, F_OFD_SETLKW);
  // A process that was killed while it wrote left its last line without an end.
  char last = '\n';
  const off_t size = ::lseek(descriptor, 0, SEEK_END);
  if (size > 0 && ::pread(descriptor, &last, 1, size - 1) == 1 && last != '\n')
    line.insert(0, "\n");
  write_all(descriptor, line, path_);
}

int Journal::count_new(const std::string& kind) {
  int count = 0;
  if (!fs::exists(path_)) return count;
  LineReader file(path_, static_cast<std::uint64_t>(counted_bytes_));
  // A line that has no end yet is for the next call.
  for (std::string line; file.next(line) && file.ended();) {
    counted_bytes_ += static_cast<std::int64_t>(line.size()) + 1;
    const nlohmann::json event = nlohmann::json::parse(line, nullptr, false);
    const auto found = event.is_object() ? event.find("event") : event.end();
    if (found != event.end() && *found == kind) ++count;
  }
  return count;
}

std::vector<nlohmann::json> read_journal(const fs::path& run) {
  std::vector<nlohmann::json> events;
  const fs::path path = run / "journal.jsonl";
  if (!fs::exists(path)) return events;
  LineReader file(path);
  for (std::string line; file.next(line);) {
    nlohmann::json event = nlohmann::json::parse(line, nullptr, false);
    if (event.is_object()) events.push_back(std::move(event));
  }
  return events;
}

}  // namespace roundhouse
