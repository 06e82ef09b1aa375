// Where things lie in a run's folder.
#pragma once

#include <filesystem>
#include <string>

namespace roundhouse {

inline std::filesystem::path results_path(const std::filesystem::path& run,
                                          const std::string& recipe) {
  return run / "results" / (recipe + ".json");
}
inline constexpr const char* kOriginal = "original";  // the unquantized model among the results

}  // namespace roundhouse
