// What this program is: project(VERSION) of CMakeLists.txt is the one place that has its number.
#pragma once

#include <string>

namespace roundhouse {

std::string version_number();  // "0.1.0"

// "1f0c2a7b9d3e"; it ends in "-dirty" where files differed from it, and is "unknown" where the sources were no git checkout.
std::string version_commit();

// "roundhouse 0.1.0 (commit 1f0c2a7b9d3e, RelWithDebInfo, without CUDA)".
std::string version_line();

}  // namespace roundhouse
