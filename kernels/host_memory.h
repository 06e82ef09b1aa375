// How much memory of its machine a process may still take.
#pragma once

#include <cstddef>
#include <filesystem>

namespace roundhouse {

// In bytes: what the machine has free or would free (MemAvailable), and no more than control groups leave, Slurm's of a job or a
// container's. At every group from this process' own up to the topmost that can be seen, of cgroup v1 and v2, that is its limit
// less what is charged to it, where cached files count as free.
// `root`: the folder that holds /proc and /sys; another one than "/" is for tests. What is missing there sets no limit.
std::size_t available_host_memory(const std::filesystem::path& root = "/");

}  // namespace roundhouse
