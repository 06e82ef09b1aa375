#include "pipeline/run/lease.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <random>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/exit_code.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/process.h"
#include "comm/launcher.h"
#include "pipeline/time_now.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr const char* kLease = "lease";
constexpr std::size_t kMaxBytes = std::size_t{64} << 10;

std::string variable(const char* name) {
  const char* const value = std::getenv(name);
  return value != nullptr ? value : "";
}

// What the file says. Its text has the same length however far the beat has come, so that it can be written in place.
struct Content {
  std::string token;
  ProcessId process;
  std::string job;    // of Slurm, with the cluster's name; empty: none
  int job_start = 0;  // how often Slurm had started it again
  std::string since;  // ISO 8601, UTC
  std::int64_t beat = 0;
  bool ended = false;

  std::string text() const {
    const nlohmann::json json = {{"token", token},
                                 {"host", process.host},
                                 {"space", process.space},
                                 {"pid", process.pid},
                                 {"start", process.start},
                                 {"job", job},
                                 {"job_start", job_start},
                                 {"since", since},
                                 {"beat", fmt::format("{:012}", beat)},
                                 {"state", ended ? "ended" : "held "}};
    return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  }
  std::string holder() const {
    const std::string slurm = job.empty() ? "" : fmt::format(" (Slurm job {})", job);
    return fmt::format("process {} on {}{} since {}", process.pid, process.host, slurm, since);
  }
};

Content own_content() {
  Content content;
  content.process = this_process();
  content.since = time_now();
  const std::string id = variable("SLURM_JOB_ID"), cluster = variable("SLURM_CLUSTER_NAME");
  content.job = id.empty() || cluster.empty() ? id : id + " on " + cluster;
  content.job_start = std::atoi(variable("SLURM_RESTART_COUNT").c_str());
  std::random_device random;
  const ProcessId& process = content.process;
  content.token = xxh3_hex(
      fmt::format("{} {} {} {} {} {} {}", process.host, process.space, process.pid, process.start,
                  Clock::now().time_since_epoch().count(), random(), random()));
  return content;
}

struct Found {
  fs::path path;
  std::string text;
  std::string token;               // of a text that is no lease: made from it
  std::optional<Content> content;  // nothing: it is no lease, or not yet
};

// Nothing: there is no such file.
std::optional<Found> read_lease(const fs::path& path) {
  std::error_code error;
  if (fs::symlink_status(path, error).type() == fs::file_type::not_found) return std::nullopt;
  Found found{.path = path, .text = {}, .token = {}, .content = {}};
  try {
    found.text = read_text_file(path, kMaxBytes);
  } catch (const Error&) {
    // It went between the two calls; else the error stands.
    if (fs::symlink_status(path, error).type() == fs::file_type::not_found) return std::nullopt;
    throw;
  }
  try {
    const nlohmann::json json = nlohmann::json::parse(found.text);
    Content content;
    content.token = json.at("token").get<std::string>();
    content.process = {.host = json.at("host").get<std::string>(),
                       .space = json.at("space").get<std::string>(),
                       .pid = json.at("pid").get<int>(),
                       .start = json.at("start").get<std::string>()};
    content.job = json.at("job").get<std::string>();
    content.job_start = json.at("job_start").get<int>();
    content.since = json.at("since").get<std::string>();
    content.ended = json.at("state").get<std::string>() == "ended";
    // It becomes part of a file's name.
    if (content.token.size() != 32 ||
        content.token.find_first_not_of("0123456789abcdef") != std::string::npos) {
      throw Error("no token");
    }
    found.token = content.token;
    found.content = std::move(content);
  } catch (const std::exception&) {
    found.token = xxh3_hex("no lease: " + found.text);
  }
  return found;
}

std::string holder_of(const Found& found) {
  return found.content ? found.content->holder()
                       : "a job that " + found.path.string() + " does not name";
}

void write_lease(int descriptor, const fs::path& path, const Content& content) {
  const std::string text = content.text();
  const ssize_t written = ::pwrite(descriptor, text.data(), text.size(), 0);
  if (written != std::ssize(text)) {
    const int error = written < 0 ? errno : ENOSPC;
    throw Error("cannot write " + path.string() + ": " +
                (error == ENOSPC || error == EDQUOT ? "disk full: " : "") +
                std::generic_category().message(error));
  }
  // Closing any descriptor of a file makes NFS send what was written to the server, where others see it, and costs nothing on a local
  // disk, as fsync() would.
  const int copy = ::dup(descriptor);
  if (copy >= 0) ::close(copy);
}

}  // namespace

struct Lease::State {
  fs::path run;
  fs::path path;
  LeaseOptions options;
  Content content = own_content();
  Descriptor file;  // of our own lease, wherever it is: never another's
  std::mutex mutex;
  std::condition_variable wake;
  bool leaving = false;
  std::thread thread;

  State(fs::path run_, LeaseOptions options_)
      : run(std::move(run_)), path(run / kLease), options(std::move(options_)) {}

  void say(const std::string& line) const {
    if (options.say) {
      options.say(line);
    } else {
      std::fputs((line + "\n").c_str(), stderr);
    }
  }

  fs::path after(const std::string& token) const {
    return fs::path(path.native() + ".after-" + token);
  }

  // The lease, and those who were about to take it from its holder, each from the one before.
  std::vector<Found> chain() const {
    std::vector<Found> all;
    for (std::optional<Found> next = read_lease(path); next;
         next = read_lease(after(all.back().token))) {
      all.push_back(std::move(*next));
      require(all.size() < 1000, "a run was taken over a thousand times at once");
    }
    return all;
  }

  // False: the file is there.
  bool create(const fs::path& name) {
    const int descriptor = ::open(name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor < 0 && errno == EEXIST) return false;
    if (descriptor < 0) {
      const int error = errno;
      const std::string what =
          "cannot make " + name.string() + ": " + std::generic_category().message(error);
      if (error == EACCES || error == EPERM || error == EROFS) throw InputError(what);
      throw Error(what);
    }
    file = Descriptor(descriptor);
    try {
      write_lease(descriptor, name, content);
    } catch (const Error&) {
      ::unlink(name.c_str());
      throw;
    }
    return true;
  }

  Life judge(const Found& found) const {
    if (!found.content) return Life::kUnknown;
    const Content& theirs = *found.content;
    if (theirs.ended) return Life::kDead;
    if (!theirs.job.empty() && theirs.job == content.job && theirs.job_start < content.job_start) {
      return Life::kDead;
    }
    return life_of(theirs.process);
  }

  [[noreturn]] void refuse(const Found& found) const {
    throw InUseError(
        fmt::format("{} is in use by {}. Wait for its end, or end it; then the same command takes "
                    "over. If it is "
                    "certainly gone, remove {}",
                    run.string(), holder_of(found), path.string()));
  }

  // True if it stands still. Else somebody is there, or was.
  bool stands_still(const Found& found) const {
    const auto begin = Clock::now();
    bool said = false;
    while (Clock::now() - begin < options.patience) {
      const auto waited = Clock::now() - begin;
      if (!said && waited > milliseconds(500)) {
        say(fmt::format("{}: waiting up to {:.0f} s for a sign of life of {}", run.string(),
                        std::chrono::duration<double>(options.patience).count(), holder_of(found)));
        said = true;
      }
      options.tick();
      std::this_thread::sleep_for(
          std::clamp<Clock::duration>(waited / 4, milliseconds(5), milliseconds(1000)));
      const std::optional<Found> now = read_lease(found.path);
      if (!now || now->text != found.text) return false;
    }
    return true;
  }

  void take() {
    for (;;) {
      const std::vector<Found> before = chain();
      if (before.empty()) {
        if (create(path)) return;
        continue;
      }
      const Found& last = before.back();
      const Life life = judge(last);
      if (life == Life::kAlive) refuse(last);
      if (life == Life::kUnknown && !stands_still(last)) {
        const std::optional<Found> now = read_lease(last.path);
        if (last.content && now && now->token == last.token && judge(*now) == Life::kUnknown)
          refuse(*now);
        continue;  // it ended, another has it, or it was only just being written
      }
      const fs::path mine = after(last.token);
      if (!create(mine)) continue;
      const std::optional<Found> root = read_lease(path);
      if (!root || root->token != before.front().token) {
        ::unlink(mine.c_str());
        continue;
      }
      if (::rename(mine.c_str(), path.c_str()) != 0) {
        const int error = errno;
        ::unlink(mine.c_str());
        throw Error("cannot make " + path.string() + ": " + std::generic_category().message(error));
      }
      for (std::size_t i = 1; i < before.size(); ++i) ::unlink(before[i].path.c_str());
      return;
    }
  }

  void keep() {
    std::optional<LeaseGuard> guard;  // of the folder as it was at first
    try {
      guard.emplace(run, content.token);
    } catch (const Error&) {
      // As below.
    }
    std::unique_lock lock(mutex);
    while (!wake.wait_for(lock, options.beat, [this] { return leaving; })) {
      try {
        if (!guard) guard.emplace(run, content.token);
        guard->check();
        ++content.beat;
        write_lease(file.get(), path, content);
      } catch (const InUseError& error) {
        lock.unlock();
        if (options.on_lost) {
          options.on_lost(error.what());
        } else {
          abort_job(kExitInUse, error.what());
        }
        return;
      } catch (const Error&) {
        // The file system does not answer. It may do so again before others lose their patience; whoever wants to write meets
        // it, too.
      }
    }
  }
};

Lease::Lease(const fs::path& run, const LeaseOptions& options)
    : state_(std::make_unique<State>(run, options)) {
  state_->take();
  state_->thread = std::thread(&State::keep, state_.get());
}

Lease::~Lease() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->leaving = true;
  }
  state_->wake.notify_all();
  state_->thread.join();
  state_->content.ended = true;
  try {
    write_lease(state_->file.get(), state_->path, state_->content);
  } catch (const Error&) {
    // Who comes next sees that the process is gone, or waits.
  }
}

const std::string& Lease::token() const { return state_->content.token; }

bool is_held(const fs::path& run) {
  const std::optional<Found> found = read_lease(run / kLease);
  if (!found) return false;
  return !found->content ||
         (!found->content->ended && life_of(found->content->process) != Life::kDead);
}

LeaseGuard::LeaseGuard(fs::path run, std::string token)
    : run_(std::move(run)), token_(std::move(token)) {
  struct stat facts {};
  if (::stat(run_.c_str(), &facts) != 0) {
    throw Error("cannot read " + run_.string() + ": " + std::generic_category().message(errno));
  }
  inode_ = facts.st_ino;
}

void LeaseGuard::check() const {
  const std::string nothing_more = "; this job writes nothing more";
  const std::optional<Found> now = read_lease(run_ / kLease);
  if (!now) {
    throw InUseError(run_.string() + " was taken from this job: " + (run_ / kLease).string() +
                     " is gone, removed by hand or with its folder" + nothing_more);
  }
  if (now->token != token_) {
    throw InUseError(run_.string() +
                     " was taken from this job, which gave no sign of life for too long, by " +
                     holder_of(*now) + nothing_more);
  }
  if (now->content->ended) {
    throw InUseError(run_.string() + ": this job's first rank has let go of it" + nothing_more);
  }
  struct stat facts {};
  if (::stat(run_.c_str(), &facts) != 0) {
    throw Error("cannot read " + run_.string() + ": " + std::generic_category().message(errno));
  }
  if (facts.st_ino != inode_) {
    throw InUseError(run_.string() + " is another folder than the one that this job began in" +
                     nothing_more);
  }
}

}  // namespace roundhouse
