#include "pipeline/start/device_choice.h"

#include <algorithm>
#include <map>
#include <optional>

#include <fmt/format.h>

#include "base/counted.h"
#include "base/error.h"
#include "base/process.h"
#include "pipeline/start/agreement.h"

namespace roundhouse {
namespace {

// Ranks on one side, GPUs on the other, an edge where a rank sees a GPU. Ranks are added one by one; each takes the GPU with the
// fewest ranks that can be reached over edges and through ranks that could move on to another, and those move. Adding along
// such paths keeps the assignment the most even one there is (Harvey et al., "Semi-matchings for bipartite graphs", 2006).
class Assignment {
 public:
  explicit Assignment(const std::vector<std::vector<std::string>>& visible)
      : visible_(visible), taken_(visible.size(), -1) {}

  void add(int rank) {
    // Breadth first: the shortest of the paths, and a rank's own order of GPUs, decide between equals.
    std::map<std::string, int> reached_by;  // GPU, the rank that would take it
    std::vector<int> ranks{rank};
    std::optional<std::string> best;
    for (std::size_t next = 0; next < ranks.size(); ++next) {
      for (const std::string& gpu : gpus_of(ranks[next])) {
        if (!reached_by.emplace(gpu, ranks[next]).second) continue;
        if (!best || on_[gpu].size() < on_[*best].size()) best = gpu;
        ranks.insert(ranks.end(), on_[gpu].begin(), on_[gpu].end());
      }
    }
    require(best.has_value(), "a rank without a GPU is to take one");
    for (std::string gpu = *best;;) {
      const int mover = reached_by.at(gpu);
      std::string left = mover == rank ? std::string() : gpu_of(mover);
      if (mover != rank) std::erase(on_[left], mover);
      on_[gpu].push_back(mover);
      const auto& seen = gpus_of(mover);
      taken_[mover] = static_cast<int>(std::ranges::find(seen, gpu) - seen.begin());
      if (mover == rank) return;
      gpu = std::move(left);
    }
  }

  const std::vector<int>& taken() const { return taken_; }

 private:
  const std::vector<std::string>& gpus_of(int rank) const { return visible_[rank]; }
  const std::string& gpu_of(int rank) const { return gpus_of(rank)[taken_[rank]]; }

  const std::vector<std::vector<std::string>>& visible_;
  std::vector<int> taken_;
  std::map<std::string, std::vector<int>> on_;  // the ranks that have taken a GPU
};

// Every rank's facts, by rank.
std::vector<nlohmann::json> all_gather(const nlohmann::json& mine, Communicator& world) {
  const std::string text = mine.dump();
  std::vector<nlohmann::json> all;
  for (const auto& bytes : world.all_gather(std::as_bytes(std::span(text)))) {
    const auto* const begin = reinterpret_cast<const char*>(bytes.data());
    all.push_back(nlohmann::json::parse(begin, begin + bytes.size()));
  }
  return all;
}

}  // namespace

std::vector<int> choose_gpus(const std::vector<std::vector<std::string>>& visible) {
  Assignment assignment(visible);
  for (std::size_t rank = 0; rank < visible.size(); ++rank) assignment.add(static_cast<int>(rank));
  return assignment.taken();
}

DeviceChoice choose_device(const std::string& wish, int local_size, Communicator& world) {
  const DeviceChoice cpu{.backend = "cpu", .sharers = local_size, .ranks = {}, .sharing = {}};
  if (wish == "cpu") return cpu;
  require(wish == "auto" || wish == "cuda", "a device of another name");

  const VisibleGpus mine = visible_gpus();
  const std::vector<nlohmann::json> all =
      all_gather({{"node", host_name()}, {"gpus", mine.uuids}, {"why_none", mine.why_none}}, world);
  std::vector<std::vector<std::string>> visible;
  std::string without;  // the first ranks that have none
  std::size_t have_none = 0;
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    visible.push_back(all[rank].at("gpus").get<std::vector<std::string>>());
    if (!visible.back().empty() || ++have_none > 4) continue;
    without += fmt::format("{}{} (rank {}: {})", without.empty() ? "" : ", ",
                           all[rank].at("node").get<std::string>(), rank,
                           all[rank].at("why_none").get<std::string>());
  }
  if (have_none > 4) without += " and " + counted(have_none - 4, "more rank");
  if (have_none == all.size()) {
    if (wish == "auto") return cpu;
    throw InputError("device: cuda: there is no GPU on " + without);
  }
  if (have_none > 0) {
    std::vector<std::string> hosts;
    std::map<int, std::string> why;
    for (std::size_t rank = 0; rank < all.size(); ++rank) {
      hosts.push_back(all[rank].at("node").get<std::string>());
      if (!visible[rank].empty()) continue;
      why[static_cast<int>(rank)] = "device: " + wish + ": there is no GPU (" +
                                    all[rank].at("why_none").get<std::string>() +
                                    "), while other ranks have one";
    }
    throw_bad_nodes(hosts, why);
  }

  const std::vector<int> taken = choose_gpus(visible);
  const auto own = static_cast<std::size_t>(world.rank());
  DeviceChoice choice{
      .backend = "cuda", .index = taken[own], .ranks = nlohmann::json::array(), .sharing = {}};
  std::map<std::string, int> ranks_on;
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    const std::string& gpu = visible[rank][taken[rank]];
    ++ranks_on[gpu];
    choice.ranks.push_back({{"node", all[rank].at("node")}, {"gpu", gpu}});
  }
  choice.sharers = ranks_on.at(visible[own][choice.index]);
  if (ranks_on.size() < all.size()) {
    const int most =
        std::ranges::max_element(ranks_on, {}, [](const auto& g) { return g.second; })->second;
    choice.sharing =
        fmt::format("{} share {}, up to {} on one; each takes its part of that one's memory",
                    counted(all.size(), "rank"), counted(ranks_on.size(), "GPU"), most);
  }
  return choice;
}

}  // namespace roundhouse
