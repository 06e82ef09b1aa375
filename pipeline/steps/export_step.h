// Checkpoints of finished recipes.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "pipeline/job.h"

namespace roundhouse {

// What an export depends on but the model's side files: its recipe, format and options.
std::string export_settings(const RunConfig& config, const RunInputs& inputs, const Recipe& recipe,
                            const std::string& format);

// OUTPUT/RECIPE/FORMAT of each. Collective over `group`: the world, or the team of a pipeline stage while others quantize. Skips what
// is already there and right. False if it stopped because it was asked to.
bool export_recipes(Job& job, Communicator& group, const std::vector<std::string>& recipes,
                    const std::vector<std::string>& formats, const std::filesystem::path& output);

// Reads those exports back and compares them with the run's records and the model, after writing what is not there; never writes one
// that is there again. Collective. How many are not what the run made, each fault printed by rank 0 with file and tensor. Nothing: it
// stopped because it was asked to.
std::optional<int> check_exports(Job& job, Communicator& group,
                                 const std::vector<std::string>& recipes,
                                 const std::vector<std::string>& formats,
                                 const std::filesystem::path& output);

}  // namespace roundhouse
