// The parts of a configuration, each read by a function of its own.
#pragma once

#include <string>
#include <vector>

#include "pipeline/config/config.h"
#include "pipeline/config/section.h"

namespace roundhouse {

// Far above anything useful, far below what overflows when multiplied.
inline constexpr int kMaxSamples = 1'000'000;
inline constexpr int kMaxTokens = 1 << 20;

// `recipes`, at least one, all with names of their own.
std::vector<Recipe> read_recipes(Section& top);
// After the recipes, which say what they need of it.
void read_calibration(Section section, InputFiles files, RunConfig& config);
void read_export(Section section, InputFiles files, RunConfig& config);
void read_evaluate(Section section, InputFiles files, RunConfig& config);

const std::string& name_of(Drawing drawing);  // "windows", "packed", "concatenated"

}  // namespace roundhouse
