// The parts of a configuration, each read by a function of its own.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/section.h"
#include "pipeline/config/config.h"

namespace roundhouse {

// Far above anything useful, far below what overflows when multiplied.
inline constexpr int kMaxSamples = 1'000'000;
inline constexpr int kMaxTokens = 1 << 20;

// `calibration` and `calibrations`: sets by name, and which methods look at which; those that are not named look at the default.
using SetOfMethod = std::map<std::string, std::string>;
SetOfMethod read_calibrations(Section& top, InputFiles files, RunConfig& config);
// `recipes` and what `sweep` stands for: at least one, all with names of their own.
void read_recipes(Section& top, const SetOfMethod& sets, RunConfig& config);
// What the recipes need of the sets.
void check_calibrations(Section& top, const RunConfig& config);
void read_export(Section section, InputFiles files, RunConfig& config);
void read_evaluate(Section section, InputFiles files, RunConfig& config);

const std::string& name_of(Drawing drawing);  // "windows", "packed", "concatenated"

}  // namespace roundhouse
