// What a recipe asks of some linears in place of what it asks of all:
//
//   overrides: [{match: "*.down_proj", bits: 8}, {match: "model.layers.0.*", skip: true}]
//
// `match` is a glob (fnmatch(3): *, ?, [...]; a * matches dots, too) over the name of a module, "model.layers.3.mlp.down_proj". Of all
// entries that match a linear the last one counts, alone. Whoever wants to know what becomes of a linear asks here: methods, exports,
// plans.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "model/block/decoder_block.h"
#include "model/quantized/linear_scheme.h"

namespace roundhouse {

struct LinearOverride {
  std::string match;
  // What becomes of the linear: LinearScheme::original() for `skip: true`; nothing for `skip: false`, which exempts it from the entries
  // before.
  std::optional<LinearScheme> scheme;
  nlohmann::json given;  // the entry as it stands in the recipe
};
using LinearOverrides = std::vector<LinearOverride>;

// The keys of an entry beside `match` and `skip`: options of the method's that may differ from linear to linear.
const std::vector<std::string>& linear_options();

// The entry that counts for a module; nullptr: none.
const LinearOverride* find_override(std::span<const LinearOverride> overrides,
                                    const std::string& module);

// What becomes of a linear of a block of which the method would make `usual`.
LinearScheme scheme_of(std::span<const LinearOverride> overrides, const DecoderBlock& decoder,
                       int block, std::size_t linear, const LinearScheme& usual);
// Whether the method has a say in it: nothing is overridden there.
bool is_overridden(std::span<const LinearOverride> overrides, const DecoderBlock& decoder,
                   int block, std::size_t linear);
bool is_skipped(std::span<const LinearOverride> overrides, const DecoderBlock& decoder, int block,
                std::size_t linear);

// Short and the same for the same entries, for names of recipes: "" without any, else "-overrides-3f2a9c1b".
std::string name_suffix(std::span<const LinearOverride> overrides);

struct Recipe;

// Throws InputError, naming the place in the config, for a pattern that matches no linear of the model (with names that are like it), a
// group size that does not divide a linear's columns, and where no linear is left to quantize.
void check_overrides(const Recipe& recipe, const DecoderBlock& decoder, int blocks);

// Whether linears with a common input, which engines fuse, are all coded alike in this model: Recipe::one_scheme_an_input, overrides
// counted.
bool one_scheme_an_input(const Recipe& recipe, const DecoderBlock& decoder, int blocks);

}  // namespace roundhouse
