// A Hugging Face directory: tensors under the names of the model's checkpoint, config.json, and an index of several files.
#include <algorithm>
#include <map>

#include "base/file.h"
#include "base/json_file.h"
#include "model/checkpoint/safetensors.h"
#include "stages/export/container.h"

namespace roundhouse {
namespace {

using Json = nlohmann::ordered_json;  // keeps the keys of config.json in their order

// Linears outside the blocks that stay as they are.
std::vector<std::string> outer_modules(const ExportedModel& exported) {
  const OuterLayout outer = outer_layout(exported.model.config());
  std::vector<std::string> modules;
  const auto is_quantized_head = [](const ExportedLinear& linear) {
    return linear.module == kOuterLinears.back() && !linear.scheme.is_original();
  };
  // Also where it is the embedding.
  if (std::ranges::none_of(exported.linears, is_quantized_head))
    modules.emplace_back(kOuterLinears.back());
  for (std::string name : {outer.project_in, outer.project_out}) {
    if (!name.empty()) modules.push_back(name.substr(0, name.rfind(".weight")));
  }
  return modules;
}

Json scheme_of(const ExportedModel& exported) {
  std::vector<ExportedLinear> quantized;
  std::vector<std::string> dense = outer_modules(exported);
  for (const ExportedLinear& linear : exported.linears) {
    if (linear.scheme.is_original()) {
      if (std::ranges::find(dense, linear.module) == dense.end()) dense.push_back(linear.module);
    } else {
      quantized.push_back(linear);
    }
  }
  return exported.format.quantization_config(exported.recipe, quantized, dense);
}

class SafetensorsContainer final : public Container {
 public:
  explicit SafetensorsContainer(const ExportedModel& exported)
      : format_(exported.format),
        source_(exported.model.checkpoint().directory()),
        config_(scheme_of(exported)),
        untied_(exported.untied) {}

  std::string ending() const override { return ".safetensors"; }
  TensorInfo of_linear(const ExportedLinear& linear, TensorInfo part) const override {
    part.name = linear.module + "." + part.name;
    return part;
  }
  TensorInfo kept(TensorInfo tensor) const override { return tensor; }

  std::unique_ptr<TensorWriter> create(const std::filesystem::path& path,
                                       const std::vector<ExportedFile>& files,
                                       std::size_t index) const override {
    return make_safetensors_writer(path, files[index].tensors, {{"format", "pt"}});
  }
  std::unique_ptr<TensorFile> open(const std::filesystem::path& path,
                                   const std::vector<ExportedFile>&, std::size_t) const override {
    return std::make_unique<SafetensorsFile>(path);
  }

  std::vector<Text> texts(const std::vector<ExportedFile>& files, DType type) const override {
    std::vector<Text> texts;
    if (files.size() > 1)
      texts.push_back({"model.safetensors.index.json", index_of(files).dump(2) + "\n"});
    const std::filesystem::path file = source_ / "config.json";
    Json config = parse_ordered_json(read_text_file(file), file.string());
    const std::string dtype(torch_name_of(type));
    config["torch_dtype"] = dtype;
    if (config.contains("dtype")) config["dtype"] = dtype;  // its name since transformers 5
    if (untied_) config[kTied] = false;
    if (config_.is_null()) {
      config.erase(kScheme);
    } else {
      config[kScheme] = config_;
      if (!format_.config_copy().empty())
        texts.push_back({format_.config_copy(), config_.dump(2) + "\n"});
    }
    texts.push_back({"config.json", config.dump(2) + "\n"});
    return texts;
  }

  nlohmann::json essence(const Text& text) const override {
    nlohmann::json whole = parse_json(text.text, text.name);
    if (text.name != "config.json" || !whole.is_object()) return whole;
    return {whole.value(kScheme, nlohmann::json()), whole.value(kTied, nlohmann::json())};
  }

 private:
  static constexpr const char* kScheme = "quantization_config";
  static constexpr const char* kTied = "tie_word_embeddings";

  static Json index_of(const std::vector<ExportedFile>& files) {
    std::map<std::string, std::string> file_of;
    std::int64_t bytes = 0;
    for (const ExportedFile& file : files) {
      for (const TensorInfo& tensor : file.tensors) {
        file_of[tensor.name] = file.name;
        bytes += element_count(tensor.shape) * static_cast<std::int64_t>(size_of(tensor.type));
      }
    }
    return {{"metadata", {{"total_size", bytes}}}, {"weight_map", file_of}};
  }

  const ExportFormat& format_;
  std::filesystem::path source_;
  Json config_;  // quantization_config
  bool untied_;
};

}  // namespace

std::unique_ptr<Container> make_safetensors_container(const ExportedModel& exported) {
  return std::make_unique<SafetensorsContainer>(exported);
}

}  // namespace roundhouse
