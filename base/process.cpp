#include "base/process.h"

#include <malloc.h>
#include <unistd.h>

#include <array>
#include <fstream>
#include <sstream>
#include <string_view>
#include <vector>

#include <fmt/format.h>

namespace roundhouse {
namespace {

std::string first_line(const std::string& path) {
  std::string line;
  std::getline(std::ifstream(path), line);
  return line;
}

std::string process_space() {
  std::array<char, 64> link{};
  if (::readlink("/proc/self/ns/pid", link.data(), link.size() - 1) <= 0) return "";
  const std::string boot = first_line("/proc/sys/kernel/random/boot_id");
  return boot.empty() ? "" : boot + " " + link.data();
}

// Field 22 of /proc/PID/stat (proc(5)); empty if there is no such process, or only its remains.
std::string start_of(int pid) {
  const std::string stat = first_line(fmt::format("/proc/{}/stat", pid));
  const std::size_t name_end = stat.rfind(')');  // the name may hold anything
  if (name_end == std::string::npos) return "";
  std::istringstream fields(stat.substr(name_end + 1));
  std::string state, field;
  fields >> state;
  for (int number = 4; number <= 22; ++number) fields >> field;
  return state == "Z" || state == "X" ? "" : field;
}

}  // namespace

std::string host_name() {
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  return name.data();
}

ProcessId this_process() {
  const int pid = ::getpid();
  return {.host = host_name(), .space = process_space(), .pid = pid, .start = start_of(pid)};
}

Life life_of(const ProcessId& process) {
  const std::string here = process_space();
  if (process.pid <= 0 || process.start.empty() || here.empty() || process.space != here) {
    return Life::kUnknown;
  }
  return start_of(process.pid) == process.start ? Life::kAlive : Life::kDead;
}

void give_back_free_memory() { malloc_trim(0); }

}  // namespace roundhouse
