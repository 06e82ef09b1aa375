#include "pipeline/start/threads.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <set>
#include <span>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/counted.h"

namespace roundhouse {
namespace {

// Some machines have more processors than a cpu_set_t.
using Mask = std::array<cpu_set_t, 16>;
constexpr int kMostProcessors = static_cast<int>(sizeof(Mask) * 8);

// Processors that a process may use; 0: this one. Empty if that cannot be found out.
std::vector<int> processors_of(pid_t process) {
  Mask mask{};
  if (sched_getaffinity(process, sizeof mask, mask.data()) != 0) return {};
  std::vector<int> found;
  for (int i = 0; i < kMostProcessors; ++i) {
    if (CPU_ISSET_S(i, sizeof mask, mask.data())) found.push_back(i);
  }
  return found;
}

void allow(const std::vector<int>& processors) {
  Mask mask{};
  for (const int i : processors) CPU_SET_S(i, sizeof mask, mask.data());
  // Where the system does not let us, threads take turns.
  (void)sched_setaffinity(0, sizeof mask, mask.data());
}

// The first of the hardware threads that share a core: "0,64" or "0-1".
int core_of(int processor) {
  std::ifstream file(
      fmt::format("/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", processor));
  int first = processor;
  file >> first;
  return file ? first : processor;
}

std::string text_of(const std::vector<int>& processors) {
  return fmt::format("{}", fmt::join(processors, " "));
}

std::vector<int> from_text(const std::string& text) {
  std::vector<int> processors;
  const char* at = text.c_str();
  for (char* end = nullptr;; at = end) {
    const long value = std::strtol(at, &end, 10);
    if (end == at) return processors;
    processors.push_back(static_cast<int>(value));
  }
}

}  // namespace

ThreadPlan plan_threads(const NodeBinding& given) {
  NodeBinding binding = given;
  const auto cores = [&](const auto& processors) {
    std::set<int> found;
    for (const int i : processors) {
      const auto core = binding.core_of.find(i);
      found.insert(core != binding.core_of.end() ? core->second : i);
    }
    return found.size();
  };

  ThreadPlan plan;
  if (binding.ranks.size() == 1 && cores(binding.ranks[0]) == 1 && cores(binding.launcher) > 1) {
    plan.unbind = true;
    binding.ranks[0] = binding.launcher;
  }

  std::map<int, int> users;
  for (const auto& processors : binding.ranks) {
    for (const int i : processors) ++users[i];
  }
  for (const auto& processors : binding.ranks) {
    double share = 1e-9;  // for what three thirds lack
    for (const int i : processors) share += 1.0 / users.at(i);
    plan.threads.push_back(std::max(1, static_cast<int>(share)));
  }

  std::set<int> used;
  for (const auto& [processor, ranks] : users) used.insert(processor);
  const auto [least, most] = std::ranges::minmax(plan.threads);
  plan.summary = fmt::format(
      "{} x {} on {} ({})", counted(plan.threads.size(), "rank"),
      least == most ? counted(least, "thread") : fmt::format("{} to {} threads", least, most),
      counted(used.size(), "processor"), counted(cores(used), "core"));

  // Ranks share what all may use without a binding; with one, it is a mistake or leaves something idle.
  const bool bound =
      !binding.launcher.empty() &&
      std::ranges::any_of(binding.ranks, [&](const auto& one) { return one != binding.launcher; });
  const bool shared = std::ranges::any_of(users, [](const auto& one) { return one.second > 1; });
  std::set<int> idle(binding.launcher.begin(), binding.launcher.end());
  for (const int i : used) idle.erase(i);
  if (bound && (shared || !idle.empty())) {
    const bool one_core =
        std::ranges::all_of(binding.ranks, [&](const auto& one) { return cores(one) == 1; });
    plan.warnings.push_back(fmt::format(
        "{}{}, and {} of {} stay idle: mpirun --bind-to none lets the ranks of a node use all of "
        "it",
        one_core ? "each rank is bound to one core" : "ranks are bound to some processors",
        shared ? ", which several share" : "", idle.size(),
        counted(binding.launcher.size(), "processor")));
  } else if (used.size() < binding.ranks.size() && !used.empty()) {
    plan.warnings.push_back(fmt::format("{} share {}: fewer are as fast",
                                        counted(binding.ranks.size(), "rank"),
                                        counted(used.size(), "processor")));
  }
  return plan;
}

RankThreads choose_threads(const LaunchSession& session) {
  NodeBinding binding;
  for (const std::string& one : session.gather_on_node(text_of(processors_of(0)))) {
    binding.ranks.push_back(from_text(one));
  }
  // Of Open MPI's mpirun the parent is its daemon. srun's is not confined to the job.
  const bool by_mpirun = std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr;
  if (by_mpirun) binding.launcher = processors_of(getppid());
  for (const int i : binding.launcher) binding.core_of.emplace(i, core_of(i));
  for (const auto& processors : binding.ranks) {
    for (const int i : processors) {
      if (!binding.core_of.contains(i)) binding.core_of.emplace(i, core_of(i));
    }
  }

  const ThreadPlan plan = plan_threads(binding);
  if (plan.unbind) allow(binding.launcher);
  if (session.local_rank() == 0) {
    std::array<char, 256> host{};
    ::gethostname(host.data(), host.size() - 1);
    for (const std::string& warning : plan.warnings) {
      fmt::print(stderr, "warning: {}: {}\n", host.data(), warning);
    }
  }
  return {plan.threads.at(static_cast<std::size_t>(session.local_rank())), plan.summary};
}

}  // namespace roundhouse
