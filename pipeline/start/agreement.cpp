#include "pipeline/start/agreement.h"

#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <set>
#include <system_error>
#include <thread>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "base/counted.h"
#include "base/error.h"
#include "base/hash.h"
#include "base/process.h"
#include "comm/together.h"
#include "kernels/host_memory.h"
#include "pipeline/run/lease.h"
#include "pipeline/version.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;
using Kind = Outcome::Kind;

constexpr rlim_t kFewOpenFiles = 256;

std::vector<std::string> all_gather(Communicator& world, const std::string& mine) {
  std::vector<std::string> all;
  for (const auto& bytes : world.all_gather(std::as_bytes(std::span(mine)))) {
    all.emplace_back(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  return all;
}

std::string bounds(const std::vector<std::int64_t>& values, const std::string& unit) {
  const auto [least, most] = std::ranges::minmax(values);
  return least == most ? fmt::format("{}{}", least, unit)
                       : fmt::format("{} to {}{}", least, most, unit);
}

}  // namespace

void throw_bad_nodes(const std::vector<std::string>& hosts,
                     const std::map<int, std::string>& why_by_rank) {
  std::map<std::pair<std::string, std::string>, std::vector<int>> ranks_by_fault;
  for (const auto& [rank, why] : why_by_rank) {
    ranks_by_fault[{hosts[rank], why}].push_back(rank);
  }
  std::vector<std::string> nodes;
  for (const auto& [fault, ranks] : ranks_by_fault) {
    nodes.push_back(fmt::format("{} (rank{} {}): {}", fault.first, ranks.size() == 1 ? "" : "s",
                                fmt::join(ranks, ", "), fault.second));
  }
  throw BadNodeError(fmt::format("bad node: {}", fmt::join(nodes, "; bad node: ")));
}

void agree(Communicator& world, const std::function<void()>& work) {
  const std::vector<Outcome> outcomes = outcomes_of(world, work);
  const auto failed = [](const Outcome& outcome) { return outcome.kind != Kind::kDone; };
  if (std::ranges::none_of(outcomes, failed)) return;
  if (std::ranges::all_of(outcomes, failed)) throw_outcome(outcomes.front());
  const std::vector<std::string> hosts = all_gather(world, host_name());
  std::map<int, std::string> why;
  for (std::size_t rank = 0; rank < outcomes.size(); ++rank) {
    if (failed(outcomes[rank])) why[static_cast<int>(rank)] = outcomes[rank].what;
  }
  throw_bad_nodes(hosts, why);
}

RunConfig agreed_config(LaunchSession& session, const std::function<RunConfig()>& read) {
  RunConfig config;
  agree(*session.world(), [&] { config = read(); });
  return config;
}

void compare_facts(Communicator& world, const Facts& facts) {
  const std::vector<std::string> all = all_gather(world, nlohmann::json(facts).dump());
  const std::vector<std::string> hosts = all_gather(world, host_name());
  std::vector<Facts> by_rank;
  for (const std::string& text : all) {
    by_rank.push_back(nlohmann::json::parse(text).get<Facts>());
  }
  std::map<int, std::string> why;
  for (const auto& [name, own] : facts) {
    std::map<std::string, std::size_t> votes;
    for (const Facts& theirs : by_rank) ++votes[theirs.at(name)];
    const std::string* right = &by_rank.front().at(name);
    for (const auto& [value, count] : votes) {
      if (count > votes.at(*right)) right = &value;
    }
    for (std::size_t rank = 0; rank < by_rank.size(); ++rank) {
      const std::string& theirs = by_rank[rank].at(name);
      if (theirs == *right) continue;
      std::string& text = why[static_cast<int>(rank)];
      text +=
          fmt::format("{}{} is {}, elsewhere {}", text.empty() ? "" : ", ", name, theirs, *right);
    }
  }
  if (!why.empty()) throw_bad_nodes(hosts, why);
}

std::string build_description() {
  return fmt::format("{}, commit {}, compiler {}, program {}", version_number(), version_commit(),
                     __VERSION__, xxh3_hex_of_file("/proc/self/exe").substr(0, 8));
}

std::string describe_agreement(Communicator& world, const Facts& facts) {
  rlimit files{};
  ::getrlimit(RLIMIT_NOFILE, &files);
  const nlohmann::json mine = {{"host", host_name()},
                               {"mib", available_host_memory() >> 20},
                               {"files", static_cast<std::int64_t>(files.rlim_cur)}};
  std::set<std::string> hosts;
  std::vector<std::int64_t> memory, open_files;
  for (const std::string& text : all_gather(world, mine.dump())) {
    const nlohmann::json theirs = nlohmann::json::parse(text);
    hosts.insert(theirs.at("host").get<std::string>());
    memory.push_back(theirs.at("mib").get<std::int64_t>());
    open_files.push_back(theirs.at("files").get<std::int64_t>());
  }
  std::vector<std::string> agreed;
  for (const auto& [name, value] : facts) agreed.push_back(name + " " + value);
  return fmt::format("{} on {}: {}; free memory {}, open files {}", counted(world.size(), "rank"),
                     counted(hosts.size(), "node"), fmt::join(agreed, "; "), bounds(memory, " MiB"),
                     bounds(open_files, ""));
}

void raise_open_files() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  if (limit.rlim_cur < limit.rlim_max) {
    rlimit raised = limit;
    raised.rlim_cur = limit.rlim_max;
    if (::setrlimit(RLIMIT_NOFILE, &raised) == 0) limit = raised;
  }
  if (limit.rlim_cur < kFewOpenFiles) {
    throw Error(fmt::format("a process may open only {} files (ulimit -n), and {} are needed",
                            limit.rlim_cur, kFewOpenFiles));
  }
}

void await_lease(const fs::path& run, const std::string& token, double patience_seconds,
                 const std::function<void()>& tick) {
  using Clock = std::chrono::steady_clock;
  const auto deadline = Clock::now() + std::chrono::duration<double>(patience_seconds);
  for (auto pause = std::chrono::milliseconds(10);;
       pause = std::min(2 * pause, std::chrono::milliseconds(1000))) {
    std::string why;
    try {
      std::error_code ignored;
      // Asks the server for the folder's entries, where a cache may say that there is no such file.
      for (fs::directory_iterator at(run, ignored), end; !ignored && at != end;
           at.increment(ignored)) {
      }
      LeaseGuard(run, token).check();
      return;
    } catch (const Error& error) {
      why = error.what();
    }
    if (Clock::now() > deadline) {
      throw Error(
          fmt::format("{} is not the folder that rank 0 has taken ({})", run.string(), why));
    }
    std::this_thread::sleep_for(pause);
    tick();
  }
}

}  // namespace roundhouse
