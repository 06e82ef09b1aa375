// GPTQ checkpoints: gptq_tensors.h, with g_idx and a config of their own. Version 1 ("gptq") stores zero point - 1, version 2
// ("gptq_v2") the zero point.
//
// Linears whose width differs from most stand in `dynamic`, by their names, and those that stay as they are with a minus.
#include <algorithm>
#include <array>
#include <map>
#include <string_view>

#include "stages/export/formats/gptq_tensors.h"

namespace roundhouse {
namespace {

// Modules that engines fuse, by the end of their names, and what they then call them.
struct Fused {
  std::string_view whole;
  std::vector<std::string_view> parts;
};
const std::array<Fused, 2> kFused = {Fused{"qkv_proj", {"q_proj", "k_proj", "v_proj"}},
                                     Fused{"gate_up_proj", {"gate_proj", "up_proj"}}};

// A regular expression that this text alone matches.
std::string escaped(std::string_view text) {
  std::string pattern;
  for (const char c : text) {
    if (c == '.') pattern += '\\';
    pattern += c;
  }
  return pattern;
}

// For each linear that differs from the others a pattern of its name, and of what engines call it where they fuse it: they look for
// that name alone. First match counts, so none may match what it does not mean.
// `skipped` are modules of blocks that stay as they are: their settings are null.
nlohmann::ordered_json dynamic_patterns(const std::vector<ExportedLinear>& linears,
                                        const LinearScheme& common,
                                        const std::vector<std::string>& skipped) {
  std::map<std::string, nlohmann::ordered_json> settings;  // by module
  for (const ExportedLinear& linear : linears)
    settings[linear.module] = gptq_settings(linear.scheme);
  for (const std::string& module : skipped) settings[module] = nullptr;
  // The others of its fused module, if all have the same settings.
  const auto whole_of = [&](const std::string& module) -> std::string {
    const std::size_t dot = module.rfind('.') + 1;
    for (const Fused& fused : kFused) {
      if (std::ranges::find(fused.parts, module.substr(dot)) == fused.parts.end()) continue;
      const bool same = std::ranges::all_of(fused.parts, [&](std::string_view part) {
        const auto found = settings.find(module.substr(0, dot) + std::string(part));
        return found != settings.end() && found->second == settings.at(module);
      });
      if (same) return module.substr(0, dot) + std::string(fused.whole);
    }
    return "";
  };
  nlohmann::ordered_json patterns = nlohmann::ordered_json::object();
  for (const ExportedLinear& linear : linears) {
    const nlohmann::ordered_json& mine = settings.at(linear.module);
    if (mine == gptq_settings(common)) continue;
    for (const std::string& name : {linear.module, whole_of(linear.module)}) {
      if (!name.empty()) patterns["+:^" + escaped(name) + "$"] = mine;
    }
  }
  for (const std::string& module : skipped) {
    for (const std::string& name : {module, whole_of(module)}) {
      if (!name.empty()) patterns["-:^" + escaped(name) + "$"] = nlohmann::ordered_json::object();
    }
  }
  return patterns;
}

class Gptq final : public GptqTensors {
 public:
  std::string name() const override { return "gptq"; }
  bool has_groups() const override { return true; }
  std::string cannot_hold(const std::string& outer_linear) const override {
    return outer_linear == kOuterLinears.back() ? "" : ExportFormat::cannot_hold(outer_linear);
  }
  std::string config_copy() const override { return "quantize_config.json"; }

  nlohmann::ordered_json quantization_config(
      const Recipe& recipe, const std::vector<ExportedLinear>& linears,
      const std::vector<std::string>& dense_modules) const override {
    const LinearScheme& common = most_frequent(linears);
    const bool symmetric = is_symmetric(common.grid);
    const auto is_head = [](const ExportedLinear& linear) {
      return linear.module == kOuterLinears.back();
    };
    const char* version = symmetric ? "gptq" : "gptq_v2";
    nlohmann::ordered_json config = {{"quant_method", "gptq"},
                                     {"bits", common.bits},
                                     {"group_size", common.group_size},
                                     {"desc_act", common.reordered},
                                     {"sym", symmetric},
                                     {"lm_head", std::ranges::any_of(linears, is_head)},
                                     {"checkpoint_format", version},
                                     {"format", version},
                                     {"pack_dtype", "int32"}};
    std::vector<std::string> skipped;
    for (const std::string& module : dense_modules) {
      const LinearOverride* const own = find_override(recipe.overrides, module);
      if (own != nullptr && own->scheme && own->scheme->is_original()) skipped.push_back(module);
    }
    const nlohmann::ordered_json others = dynamic_patterns(linears, common, skipped);
    if (!others.empty()) config["dynamic"] = others;
    // What readers show, and compute nothing with.
    if (recipe.options.contains("true_sequential"))
      config["true_sequential"] = recipe.options["true_sequential"];
    const double damping = recipe.options.value("damping", 0.0);
    if (damping > 0 && damping < 1) config["damp_percent"] = damping;  // transformers refuses 0, 1
    return config;
  }
};

}  // namespace

std::unique_ptr<ExportFormat> make_gptq() { return std::make_unique<Gptq>(); }

}  // namespace roundhouse
