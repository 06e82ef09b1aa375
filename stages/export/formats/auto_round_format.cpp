// AutoRound's checkpoints: gptq_tensors.h without g_idx. What their zero points are stands in `packing_format`: "auto_round:auto_gptq",
// of symmetric grids, has them less one, "auto_round" as they are. Linears that differ from most, and those that stay as they are, stand
// in `extra_config` by their names.
#include "stages/export/formats/gptq_tensors.h"

namespace roundhouse {
namespace {

class AutoRound final : public GptqTensors {
 public:
  std::string name() const override { return "auto_round"; }
  bool has_groups() const override { return false; }

  nlohmann::ordered_json quantization_config(
      const Recipe&, const std::vector<ExportedLinear>& linears,
      const std::vector<std::string>& dense_modules) const override {
    const LinearScheme& common = most_frequent(linears);
    const bool symmetric = is_symmetric(common.grid);
    nlohmann::ordered_json config = {
        {"quant_method", "auto-round"},
        {"packing_format", symmetric ? "auto_round:auto_gptq" : "auto_round"},
        {"bits", common.bits},
        {"group_size", common.group_size},
        {"sym", symmetric},
        {"data_type", "int"},
        {"block_name_to_quantize", blocks_of(linears)},
        {"autoround_version", kVersion}};
    nlohmann::ordered_json others = nlohmann::ordered_json::object();
    for (const ExportedLinear& linear : linears) {
      nlohmann::ordered_json differs = nlohmann::ordered_json::object();
      if (linear.scheme.bits != common.bits) differs["bits"] = linear.scheme.bits;
      if (linear.scheme.group_size != common.group_size)
        differs["group_size"] = linear.scheme.group_size;
      if (!differs.empty()) others[linear.module] = differs;
    }
    for (const std::string& module : dense_modules) others[module] = {{"bits", 16}};
    if (!others.empty()) config["extra_config"] = others;
    return config;
  }

 private:
  static constexpr const char* kVersion = "0.16.1";  // which these keys were read in

  // "model.layers" of "model.layers.0.mlp.up_proj"
  static std::string blocks_of(const std::vector<ExportedLinear>& linears) {
    const ExportedLinear& first = linears.front();
    const std::string block =
        first.module.substr(0, first.module.size() - first.spec.name.size() - 1);
    return block.substr(0, block.rfind('.'));
  }
};

}  // namespace

std::unique_ptr<ExportFormat> make_auto_round() { return std::make_unique<AutoRound>(); }

}  // namespace roundhouse
