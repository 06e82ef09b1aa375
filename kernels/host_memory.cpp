#include "kernels/host_memory.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kNoLimit = std::numeric_limits<std::size_t>::max();

// The file's number; where it has none ("max") or is not there, `otherwise`.
std::size_t number_in(const fs::path& file, std::size_t otherwise) {
  std::size_t number = 0;
  return std::ifstream(file) >> number ? number : otherwise;
}

// The sum of these lines of a file of lines "name value ..."; `otherwise` where it has none of them.
std::size_t sum_of_lines(const fs::path& file, const std::vector<std::string>& names,
                         std::size_t otherwise) {
  std::ifstream in(file);
  std::size_t sum = 0;
  bool found = false;
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string name;
    std::size_t value = 0;
    if (!(words >> name >> value) || std::ranges::find(names, name) == names.end()) continue;
    sum += value;
    found = true;
  }
  return found ? sum : otherwise;
}

// What one group leaves. A folder that is no group of this version, or the root group, has no limit.
std::size_t left_by_v2(const fs::path& group) {
  const std::size_t limit = std::min(number_in(group / "memory.max", kNoLimit),
                                     number_in(group / "memory.high", kNoLimit));
  if (limit == kNoLimit) return kNoLimit;
  const std::size_t used = number_in(group / "memory.current", 0);
  const std::size_t cached =
      sum_of_lines(group / "memory.stat", {"inactive_file", "active_file"}, 0);
  return limit - std::min(limit, used - std::min(used, cached));
}

std::size_t left_by_v1(const fs::path& group) {
  const fs::path stat = group / "memory.stat";
  // The second one also knows of groups above that a container does not see.
  const std::size_t limit = std::min(number_in(group / "memory.limit_in_bytes", kNoLimit),
                                     sum_of_lines(stat, {"hierarchical_memory_limit"}, kNoLimit));
  if (limit == kNoLimit) return kNoLimit;
  const std::size_t used = number_in(group / "memory.usage_in_bytes", 0);
  const std::size_t cached = sum_of_lines(stat, {"total_inactive_file", "total_active_file"}, 0);
  return limit - std::min(limit, used - std::min(used, cached));
}

// mountinfo writes a space in a path as \040, and so on.
std::string unescaped(std::string_view text) {
  std::string plain;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      plain += static_cast<char>(std::stoi(std::string(text.substr(i + 1, 3)), nullptr, 8));
      i += 3;
    } else {
      plain += text[i];
    }
  }
  return plain;
}

bool lists(std::string_view names, std::string_view name) {  // "rw,memory" lists "memory"
  return ("," + std::string(names) + ",").find("," + std::string(name) + ",") != std::string::npos;
}

// A hierarchy of groups, as far as it is mounted: folder `mounted` holds the group `top` and those below it.
struct Hierarchy {
  fs::path mounted;
  fs::path top;
  bool v2;
};

// proc(5): "36 35 98:0 /top /mounted rw,noatime shared:1 - cgroup source rw,memory"
std::vector<Hierarchy> hierarchies(const fs::path& root) {
  std::vector<Hierarchy> all;
  std::ifstream in(root / "proc/self/mountinfo");
  for (std::string line; std::getline(in, line);) {
    const std::size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    std::istringstream left(line.substr(0, dash)), right(line.substr(dash + 3));
    std::string skipped, top, mounted, type, source, options;
    left >> skipped >> skipped >> skipped >> top >> mounted;
    right >> type >> source >> options;
    const bool v2 = type == "cgroup2";
    if (!v2 && !(type == "cgroup" && lists(options, "memory"))) continue;
    all.push_back({root / fs::path(unescaped(mounted)).relative_path(), unescaped(top), v2});
  }
  return all;
}

// This process' group in the hierarchy; proc's lines: "0::/group" (v2), "4:cpu,memory:/group" (v1). Empty: none.
fs::path own_group(const fs::path& root, bool v2) {
  std::ifstream in(root / "proc/self/cgroup");
  for (std::string line; std::getline(in, line);) {
    const std::size_t first = line.find(':');
    const std::size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (v2 ? controllers.empty() : lists(controllers, "memory")) return line.substr(second + 1);
  }
  return {};
}

std::size_t left_by_groups(const fs::path& root) {
  std::size_t left = kNoLimit;
  for (const Hierarchy& hierarchy : hierarchies(root)) {
    const fs::path group = own_group(root, hierarchy.v2);
    if (group.empty()) continue;
    fs::path below = group.lexically_relative(hierarchy.top);
    // A container may see its own group as the top of the mount and not say so in its path.
    if (below.empty() || *below.begin() == "..") below = ".";
    for (;; below = below.parent_path()) {
      const fs::path folder = hierarchy.mounted / below;
      left = std::min(left, hierarchy.v2 ? left_by_v2(folder) : left_by_v1(folder));
      if (below.empty() || below == ".") break;
    }
  }
  return left;
}

}  // namespace

std::size_t available_host_memory(const fs::path& root) {
  const std::size_t kib = sum_of_lines(root / "proc/meminfo", {"MemAvailable:"}, 0);
  const std::size_t free = kib > 0 ? kib * 1024
                                   : static_cast<std::size_t>(sysconf(_SC_AVPHYS_PAGES)) *
                                         static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return std::min(free, left_by_groups(root));
}

}  // namespace roundhouse
