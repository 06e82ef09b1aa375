#pragma once

#include "pipeline/run/run_files.h"
#include "pipeline/run/sealed_json.h"

namespace roundhouse {

// The figures of a recipe, or of kOriginal.
inline SealedJson read_results(const std::filesystem::path& run, const std::string& recipe) {
  return read_sealed_json(results_path(run, recipe), results_key(recipe));
}

}  // namespace roundhouse
