// Where tests find golden files and the bundled model: in the source tree that they were built from, or, on another machine,
// in the folder that ROUNDHOUSE_SOURCE_DIR names.
#pragma once

#include <cstdlib>
#include <filesystem>

namespace roundhouse {

inline std::filesystem::path source_folder() {
  const char* given = std::getenv("ROUNDHOUSE_SOURCE_DIR");
  return given ? given : ROUNDHOUSE_SOURCE_DIR;
}

}  // namespace roundhouse
