#include "model/model_config.h"

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/json_file.h"
#include "model/config/config_keys.h"
#include "model/config/families.h"

namespace roundhouse {
namespace {

using nlohmann::json;

constexpr std::int64_t kMaxBlocks = 10'000;
constexpr std::size_t kMaxConfigBytes = std::size_t{1} << 24;

// Mixtures of experts, by model_type and class.
constexpr std::array<std::pair<std::string_view, std::string_view>, 12> kMixtures = {{
    {"mixtral", "MixtralForCausalLM"},
    {"qwen2_moe", "Qwen2MoeForCausalLM"},
    {"qwen3_moe", "Qwen3MoeForCausalLM"},
    {"qwen3_next", "Qwen3NextForCausalLM"},
    {"deepseek", "DeepseekForCausalLM"},
    {"deepseek_v2", "DeepseekV2ForCausalLM"},
    {"deepseek_v3", "DeepseekV3ForCausalLM"},
    {"granitemoe", "GraniteMoeForCausalLM"},
    {"phimoe", "PhimoeForCausalLM"},
    {"olmoe", "OlmoeForCausalLM"},
    {"gpt_oss", "GptOssForCausalLM"},
    {"llama4_text", "Llama4ForCausalLM"},
}};

// Of models whose decoder is read, with parts for images around it.
constexpr std::array<std::pair<std::string_view, std::string_view>, 1> kWithImages = {{
    {"gemma3", "Gemma3ForConditionalGeneration"},
}};

[[noreturn]] void refuse_architecture(const ConfigKeys& keys, const char* key,
                                      const std::string& name) {
  const auto is_one_of = [&](const auto& names) {
    return std::ranges::any_of(
        names, [&](const auto& each) { return each.first == name || each.second == name; });
  };
  const char* const why = is_one_of(kMixtures) ? ": mixtures of experts are not read"
                          : is_one_of(kWithImages)
                              ? ": models that read images are not read; "
                                "make a directory of its decoder (docs/models.md)"
                              : "";
  std::string supported;
  for (const Family& each : families()) {
    supported += (supported.empty()             ? ""
                  : &each == &families().back() ? " and "
                                                : ", ") +
                 std::string(each.class_name);
  }
  keys.fail(key, in_quotes(name) + " is not supported" + why + " (" + supported + " are)");
}

const Family& read_architecture(const ConfigKeys& keys) {
  const std::optional<std::string> type = keys.string("model_type");
  if (const json* list = keys.find("architectures")) {
    if (!list->is_array() || list->size() != 1 || !list->front().is_string()) {
      keys.fail("architectures", "must be a list of one name");
    }
    const auto name = list->front().get<std::string>();
    const auto found = std::ranges::find(families(), name, &Family::class_name);
    if (found == families().end()) refuse_architecture(keys, "architectures", name);
    if (type && *type != found->model_type)
      keys.fail("model_type", in_quotes(*type) + " does not go with " + in_quotes(name));
    return *found;
  }
  if (!type) keys.fail("model_type", "is missing, and so is architectures");
  const auto found = std::ranges::find(families(), *type, &Family::model_type);
  if (found == families().end()) refuse_architecture(keys, "model_type", *type);
  return *found;
}

DType read_dtype(const ConfigKeys& keys) {
  for (const std::string key : {"dtype", "torch_dtype"}) {  // the new name first
    const auto name = keys.string(key);
    if (!name) continue;
    for (const DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
      if (*name == torch_name_of(type)) return type;
    }
    keys.fail(key, in_quotes(*name) + " is not supported (float32, float16 and bfloat16 are)");
  }
  return DType::kF16;
}

}  // namespace

bool ModelConfig::has_window(std::int64_t block) const {
  return sliding_window > 0 && (windowed.empty() || windowed.at(static_cast<std::size_t>(block)));
}

std::int64_t ModelConfig::window_of(std::int64_t block) const {
  return has_window(block) ? sliding_window : 0;
}

ModelConfig read_model_config(const std::filesystem::path& directory) {
  const std::filesystem::path file = directory / "config.json";
  const ConfigKeys keys(file, read_json_file(file, kMaxConfigBytes));
  ModelConfig config;
  const Family& family = read_architecture(keys);
  config.architecture = family.architecture;
  if (keys.find("quantization_config") != nullptr) {
    keys.fail("quantization_config", "this model is quantized already; give the original one");
  }
  config.hidden_size = keys.size("hidden_size");
  config.blocks = keys.size("num_hidden_layers", kMaxBlocks);
  config.heads = keys.size("num_attention_heads");
  config.vocabulary = keys.size("vocab_size");
  config.eos = {2};
  config.dtype = read_dtype(keys);
  family.read(keys, config);
  // A family's default may lie outside a small model's vocabulary.
  std::erase_if(config.eos, [&](int id) { return id >= config.vocabulary; });

  const auto token = [&](const char* key, const json& value) {
    // -1 stands for "none" in old configs.
    return static_cast<int>(keys.integer(key, value, -1, config.vocabulary - 1));
  };
  if (!keys.absent("bos_token_id")) {
    const json* bos = keys.find("bos_token_id");
    config.bos = bos == nullptr ? -1 : token("bos_token_id", *bos);
  }
  if (!keys.absent("eos_token_id")) {
    config.eos.clear();
    const json* eos = keys.find("eos_token_id");
    for (const json& one : eos == nullptr    ? json::array()
                           : eos->is_array() ? *eos
                                             : json::array({*eos})) {
      if (const int id = token("eos_token_id", one); id >= 0) config.eos.push_back(id);
    }
  }
  return config;
}

}  // namespace roundhouse
