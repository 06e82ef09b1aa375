// Reads exports back.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "stages/export/export.h"

namespace roundhouse {

// Collective over `world`. Reads an export back, through the format and not through what wrote it, and compares every weight with the
// records of the run, and every other tensor with the model's: what is not equal (where the format rounds: to the rounded value) is
// a line on rank 0, with file and tensor. Empty: all is right. Nothing: it was asked to stop. File i is compared by rank i % size.
// SHA256SUMS is not looked at.
std::optional<std::vector<std::string>> compare_export(const CausalLM& model,
                                                       const DecoderBlock& decoder,
                                                       const Recipe& recipe, RunStore& store,
                                                       const ExportOptions& options,
                                                       const std::filesystem::path& directory,
                                                       Communicator& world, Monitor& monitor);

}  // namespace roundhouse
