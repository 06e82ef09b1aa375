#include "model/block/model_units.h"

#include <algorithm>
#include <array>

#include <fmt/format.h>

namespace roundhouse {
namespace {

constexpr std::array<const char*, kOuterLinears.size()> kNames = {"embedding", "head"};

}  // namespace

std::string unit_name(int unit, const std::vector<std::string>& outside) {
  std::string name;
  for (std::size_t i = 0; i < kOuterLinears.size(); ++i) {
    if (std::ranges::find(outside, kOuterLinears[i]) == outside.end()) continue;
    name += fmt::format("{}{}", name.empty() ? "" : " and ", kNames[i]);
  }
  return name.empty() ? fmt::format("block {}", unit) : name;
}

std::string unit_name(int unit, const DecoderBlock& decoder) {
  std::vector<std::string> outside;
  if (!decoder.flows()) {  // its inputs are called as recipes call its linears
    for (const SharedInput& input : decoder.shared_inputs()) outside.push_back(input.name);
  }
  return unit_name(unit, outside);
}

}  // namespace roundhouse
