// GPTQ checkpoints. Everything is transposed: outputs run along a row of the file.
//
//   qweight  I32 [cols bits / 32, rows]    column n: stream of the codes of inputs 0, 1, ... of output n
//   qzeros   I32 [groups, rows bits / 32]  row g: stream of the zero points of outputs 0, 1, ...
//   scales   F16 [groups, rows]
//   g_idx    I32 [cols]                    the group of each input, in the original order of inputs
//
// Version 1 ("gptq") stores zero point - 1, and kernels disagree on what 0 then becomes. Symmetric
// grids have 2^(bits-1) everywhere, which is safe; asymmetric ones are written as version 2
// ("gptq_v2"), which stores it as it is.
//
// Linears whose width differs from most stand in `dynamic`, by their names.
#include <algorithm>
#include <array>
#include <map>
#include <string_view>

#include "model/quantized/bitstream.h"
#include "stages/export/format.h"
#include "stages/export/transposed.h"

namespace roundhouse {
namespace {

// Modules that engines fuse, by the end of their names, and what they then call them.
struct Fused {
  std::string_view whole;
  std::vector<std::string_view> parts;
};
const std::array<Fused, 2> kFused = {Fused{"qkv_proj", {"q_proj", "k_proj", "v_proj"}},
                                     Fused{"gate_up_proj", {"gate_proj", "up_proj"}}};

// What readers take as a linear's settings.
nlohmann::ordered_json settings_of(const LinearScheme& scheme) {
  return {{"bits", scheme.bits}, {"group_size", scheme.group_size}, {"desc_act", scheme.reordered}};
}

// The first of those that most linears have.
const LinearScheme& most_frequent(const std::vector<ExportedLinear>& linears) {
  const auto count = [&](const ExportedLinear& linear) {
    return std::ranges::count(linears, linear.scheme, &ExportedLinear::scheme);
  };
  return std::ranges::max_element(linears, {}, count)->scheme;
}

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
nlohmann::ordered_json dynamic_patterns(const std::vector<ExportedLinear>& linears,
                                        const LinearScheme& common) {
  std::map<std::string, nlohmann::ordered_json> settings;  // by module
  for (const ExportedLinear& linear : linears) settings[linear.module] = settings_of(linear.scheme);
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
    if (mine == settings_of(common)) continue;
    for (const std::string& name : {linear.module, whole_of(linear.module)}) {
      if (!name.empty()) patterns["+:^" + escaped(name) + "$"] = mine;
    }
  }
  return patterns;
}

class Gptq final : public ExportFormat {
 public:
  std::string name() const override { return "gptq"; }
  bool has_scheme() const override { return true; }
  std::string config_copy() const override { return "quantize_config.json"; }

  void check_schemes(const Recipe& recipe) const override {
    check_packable_grids(name(), recipe);
    const bool symmetric = is_symmetric(recipe.schemes.front().grid);
    if (std::ranges::any_of(recipe.schemes, [&](const LinearScheme& scheme) {
          return is_symmetric(scheme.grid) != symmetric;
        })) {
      throw not_exportable(
          name(), recipe,
          "some linears have symmetric grids and some asymmetric ones, for which it "
          "has two versions; use the format 'compressed-tensors' or 'dense'");
    }
  }
  void check_size(const Recipe& recipe, const LinearSpec& linear) const override {
    check_packable_size(name(), recipe, linear);
  }

  std::vector<TensorInfo> tensors(const ExportedLinear& linear, DType) const override {
    const std::int64_t rows = linear.spec.rows, cols = linear.spec.cols;
    const int bits = linear.scheme.bits;
    return {{"qweight", DType::kI32, {cols * bits / 32, rows}},
            {"qzeros", DType::kI32, {linear.groups(), rows * bits / 32}},
            {"scales", DType::kF16, {linear.groups(), rows}},
            {"g_idx", DType::kI32, {cols}}};
  }

  std::vector<HostTensor> fill(const QuantizedLinear& linear, DType dtype) const override {
    std::vector<HostTensor> filled = empty_tensors(*this, linear, dtype);
    pack_transposed(linear, filled[0]);
    pack_zeros(linear, filled[1]);
    transpose_scales(linear, filled[2]);
    const std::span<std::int32_t> group_of = filled[3].as<std::int32_t>();
    if (linear.group_of_column.count() > 0) {
      std::ranges::copy(linear.group_of_column.as<std::int32_t>(), group_of.begin());
    } else {
      for (std::size_t col = 0; col < group_of.size(); ++col) {
        group_of[col] =
            static_cast<std::int32_t>(static_cast<std::int64_t>(col) / linear.group_size);
      }
    }
    return filled;
  }

  nlohmann::ordered_json quantization_config(const Recipe& recipe,
                                             const std::vector<ExportedLinear>& linears,
                                             const std::vector<std::string>&) const override {
    const LinearScheme& common = most_frequent(linears);
    const bool symmetric = is_symmetric(common.grid);
    const char* version = symmetric ? "gptq" : "gptq_v2";
    nlohmann::ordered_json config = {
        {"quant_method", "gptq"},       {"bits", common.bits}, {"group_size", common.group_size},
        {"desc_act", common.reordered}, {"sym", symmetric},    {"lm_head", false},
        {"checkpoint_format", version}, {"format", version},   {"pack_dtype", "int32"}};
    const nlohmann::ordered_json others = dynamic_patterns(linears, common);
    if (!others.empty()) config["dynamic"] = others;
    // What readers show, and compute nothing with.
    if (recipe.options.contains("true_sequential"))
      config["true_sequential"] = recipe.options["true_sequential"];
    const double damping = recipe.options.value("damping", 0.0);
    if (damping > 0 && damping < 1) config["damp_percent"] = damping;  // transformers refuses 0, 1
    return config;
  }

 private:
  static void pack_zeros(const QuantizedLinear& linear, HostTensor& packed) {
    const auto rows = static_cast<std::size_t>(linear.rows);
    const auto groups = static_cast<std::size_t>(linear.groups());
    const std::size_t words = packed_words(rows, linear.bits);
    std::vector<std::uint8_t> stored(linear.zeros.as<std::uint8_t>().begin(),
                                     linear.zeros.as<std::uint8_t>().end());
    if (is_symmetric(linear.grid)) {
      for (std::uint8_t& zero : stored) --zero;
    }
    const std::span<std::uint32_t> out = packed.as<std::uint32_t>();
    for (std::size_t group = 0; group < groups; ++group) {
      pack_bits(stored.data() + group, rows, groups, linear.bits, out.data() + group * words);
    }
  }
};

}  // namespace

std::unique_ptr<ExportFormat> make_gptq() { return std::make_unique<Gptq>(); }

}  // namespace roundhouse
