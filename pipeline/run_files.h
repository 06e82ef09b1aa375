// Where things lie in a run's folder.
#pragma once

#include <filesystem>
#include <string>

namespace roundhouse {

inline std::filesystem::path results_path(const std::filesystem::path& run,
                                          const std::string& recipe) {
  return run / "results" / (recipe + ".json");
}
inline std::filesystem::path export_path(const std::filesystem::path& run,
                                         const std::string& recipe, const std::string& format) {
  return run / "export" / recipe / format;
}

inline constexpr const char* kOriginal = "original";  // the unquantized model among the results

}  // namespace roundhouse
