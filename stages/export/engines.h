// Which engine serves which export. Formats are libraries' promises; loaders and kernels of an engine take less than its format
// can hold, and change from version to version. What is known of each stands in one table (engines.cpp).
#pragma once

#include <string>
#include <vector>

#include "stages/quantize/recipe.h"

namespace roundhouse {

std::vector<std::string> engine_names();  // "vllm", ...: what `export.for` knows

// Throws InputError if one of `engines` would refuse this recipe in this format: names recipe, format, engine and version, says
// why, what the engine takes instead, and in which formats all of `engines` load this recipe. Needs no model; where one is there, Recipe::one_scheme_an_input is
// to be that of the model (linear_overrides.h).
void check_served(const Recipe& recipe, const std::string& format,
                  const std::vector<std::string>& engines);

// The same in a model, whose linears the recipe's overrides may have made different where engines fuse them.
void check_served(const Recipe& recipe, const DecoderBlock& decoder, int blocks,
                  const std::string& format, const std::vector<std::string>& engines);

// The table as the rows of one in Markdown: engine and version, format, symmetric, asymmetric, groups, act_order: dynamic, lm_head, how it
// is known. docs/formats.md shows them.
std::vector<std::string> engine_table();

}  // namespace roundhouse
