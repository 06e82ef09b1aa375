#include "stages/quantize/linear_overrides.h"

#include <fnmatch.h>

#include <algorithm>
#include <set>

#include <fmt/format.h>

#include "base/error.h"
#include "base/hash.h"
#include "base/quote.h"
#include "stages/quantize/recipe.h"

namespace roundhouse {
namespace {

bool matches(const LinearOverride& each, const std::string& module) {
  return fnmatch(each.match.c_str(), module.c_str(), 0) == 0;
}

// Names that are most like a pattern: those of linears whole, and with a star before what a block calls them.
std::vector<std::string> names_like(const std::string& pattern, const DecoderBlock& decoder,
                                    int blocks) {
  std::vector<std::string> known;
  for (std::size_t i = 0; i < decoder.linears().size(); ++i) {
    const std::string& name = decoder.linears()[i].name;
    for (const std::string& part : {name, name.substr(name.rfind('.') + 1)}) {
      known.push_back("*." + part);
      known.push_back("*" + part);
    }
    for (int block = 0; block < blocks; ++block) known.push_back(decoder.module(block, i));
  }
  std::vector<std::string> nearest = nearest_words(pattern, known, 3);
  if (nearest.empty()) {
    for (std::size_t i = 0; i < decoder.linears().size(); ++i)
      nearest.push_back(decoder.module(0, i));
  }
  return nearest;
}

[[noreturn]] void refuse(const Recipe& recipe, std::size_t entry, const std::string& key,
                         const std::string& what) {
  const std::string at = fmt::format("overrides[{}].{}", entry, key);
  for (const std::string& name : {at, std::string("overrides"), std::string()}) {
    const auto place = recipe.where.find(name);
    if (place == recipe.where.end()) continue;
    throw InputError(place->second + (name == at ? "" : " " + at) + ": " + what);
  }
  throw InputError("recipe " + recipe.name + ": " + at + ": " + what);
}

}  // namespace

const std::vector<std::string>& linear_options() {
  static const std::vector<std::string> keys = {"bits", "group_size", "grid", "symmetric"};
  return keys;
}

const LinearOverride* find_override(std::span<const LinearOverride> overrides,
                                    const std::string& module) {
  for (std::size_t i = overrides.size(); i-- > 0;) {
    if (matches(overrides[i], module)) return &overrides[i];
  }
  return nullptr;
}

LinearScheme scheme_of(std::span<const LinearOverride> overrides, const DecoderBlock& decoder,
                       int block, std::size_t linear, const LinearScheme& usual) {
  if (overrides.empty()) return usual;
  const LinearOverride* const found = find_override(overrides, decoder.module(block, linear));
  return found != nullptr ? found->scheme.value_or(usual) : usual;
}

bool is_overridden(std::span<const LinearOverride> overrides, const DecoderBlock& decoder,
                   int block, std::size_t linear) {
  if (overrides.empty()) return false;
  const LinearOverride* const found = find_override(overrides, decoder.module(block, linear));
  return found != nullptr && found->scheme.has_value();
}

bool is_skipped(std::span<const LinearOverride> overrides, const DecoderBlock& decoder, int block,
                std::size_t linear) {
  return scheme_of(overrides, decoder, block, linear, {}).is_original();
}

std::string name_suffix(std::span<const LinearOverride> overrides) {
  if (overrides.empty()) return "";
  nlohmann::json all = nlohmann::json::array();
  for (const LinearOverride& each : overrides) all.push_back(each.given);
  return "-overrides-" + xxh3_hex(all.dump()).substr(0, 8);
}

void check_overrides(const Recipe& recipe, const DecoderBlock& decoder, int blocks) {
  const LinearOverrides& overrides = recipe.overrides;
  if (overrides.empty()) return;
  std::vector<bool> used(overrides.size());
  bool quantized = false;
  const ModelUnits units(decoder, blocks, recipe.include);
  for (int unit = 0; unit < units.count(); ++unit) {
    const DecoderBlock& here = units.of(unit);
    for (std::size_t i = 0; i < here.linears().size(); ++i) {
      const std::string module = here.module(unit, i);
      for (std::size_t n = 0; n < overrides.size(); ++n)
        used[n] = used[n] || matches(overrides[n], module);
      const LinearScheme scheme = scheme_of(overrides, here, unit, i, recipe.schemes.front());
      quantized = quantized || !scheme.is_original();
      const LinearOverride* const found = find_override(overrides, module);
      if (found == nullptr || scheme.is_original() || !found->given.contains("group_size"))
        continue;
      const std::int64_t cols = here.linears()[i].cols;
      if (scheme.group_size != -1 && cols % scheme.group_size != 0) {
        refuse(recipe, static_cast<std::size_t>(found - overrides.data()), "group_size",
               fmt::format("{} does not divide the {} columns of {}", scheme.group_size, cols,
                           module));
      }
    }
  }
  for (std::size_t n = 0; n < overrides.size(); ++n) {
    if (used[n]) continue;
    refuse(recipe, n, "match",
           "no linear that this recipe quantizes is called " + in_quotes(overrides[n].match) +
               "; like it are " + in_quotes(names_like(overrides[n].match, decoder, blocks)));
  }
  if (!quantized)
    refuse(recipe, overrides.size() - 1, "match", "no linear is left to quantize: all are skipped");
}

bool one_scheme_an_input(const Recipe& recipe, const DecoderBlock& decoder, int blocks) {
  if (recipe.overrides.empty()) return recipe.one_scheme_an_input;
  // Where the method decides, it does so alike, or not, for those that it has a say in.
  const LinearScheme usual = recipe.schemes.front();
  bool decided = false;
  for (int block = 0; block < blocks; ++block) {
    for (const SharedInput& group : decoder.shared_inputs()) {
      std::size_t mine = 0;
      std::vector<LinearScheme> schemes;
      for (const int i : group.linears) {
        const auto linear = static_cast<std::size_t>(i);
        mine += is_overridden(recipe.overrides, decoder, block, linear) ? 0 : 1;
        schemes.push_back(scheme_of(recipe.overrides, decoder, block, linear, usual));
      }
      if (mine > 1) decided = true;
      if (recipe.decides_schemes && mine != 0 && mine != group.linears.size()) return false;
      if (std::ranges::adjacent_find(schemes, std::not_equal_to()) != schemes.end()) return false;
    }
  }
  return recipe.one_scheme_an_input || !decided;
}

}  // namespace roundhouse
