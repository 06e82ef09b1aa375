#include "model/model_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/json_file.h"

namespace roundhouse {
namespace {

using nlohmann::json;

// Bounds that no model comes near and that keep every product of two sizes well inside 64 bits.
constexpr std::int64_t kMaxSize = std::int64_t{1} << 24;
constexpr std::int64_t kMaxBlocks = 10'000;
constexpr std::int64_t kMaxPositions = std::numeric_limits<std::int32_t>::max();
constexpr std::size_t kMaxConfigBytes = std::size_t{1} << 24;

// The keys of config.json. In Hugging Face configs null means the same as absence.
class Keys {
 public:
  Keys(std::filesystem::path file, json object)
      : file_(std::move(file)), object_(std::move(object)) {
    if (!object_.is_object()) throw InputError(file_.string() + ": not a JSON object");
  }

  [[noreturn]] void fail(const std::string& key, const std::string& what) const {
    throw InputError(file_.string() + ": " + printable(key, 200) + ": " + what);
  }
  bool absent(const std::string& key) const { return !object_.contains(key); }
  const json* find(const std::string& key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }

  std::int64_t integer(const std::string& key, const json& value, std::int64_t low,
                       std::int64_t high) const {
    const bool fits = value.is_number_integer() &&
                      (!value.is_number_unsigned() ||
                       value.get<std::uint64_t>() <= static_cast<std::uint64_t>(high)) &&
                      value.get<std::int64_t>() >= low && value.get<std::int64_t>() <= high;
    if (!fits)
      fail(key, "must be an integer from " + std::to_string(low) + " to " + std::to_string(high));
    return value.get<std::int64_t>();
  }
  std::int64_t size(const std::string& key, std::int64_t high = kMaxSize,
                    std::optional<std::int64_t> absent_value = std::nullopt) const {
    const json* value = find(key);
    if (value != nullptr) return integer(key, *value, 1, high);
    if (!absent_value) fail(key, "is missing");
    return *absent_value;
  }
  double number(const std::string& key, const json& value, double low, double high) const {
    if (!value.is_number() || !(value.get<double>() >= low && value.get<double>() <= high)) {
      fail(key, "must be a number from " + json(low).dump() + " to " + json(high).dump());
    }
    return value.get<double>();
  }
  bool boolean(const std::string& key, bool absent_value) const {
    const json* value = find(key);
    if (value == nullptr) return absent_value;
    if (!value->is_boolean()) fail(key, "must be true or false");
    return value->get<bool>();
  }
  std::optional<std::string> string(const std::string& key) const {
    const json* value = find(key);
    if (value == nullptr) return std::nullopt;
    if (!value->is_string()) fail(key, "must be a string");
    return value->get<std::string>();
  }

 private:
  std::filesystem::path file_;
  json object_;
};

struct Name {
  Architecture architecture;
  const char* model_type;
  const char* class_name;
};
constexpr std::array<Name, 3> kNames = {{{Architecture::kLlama, "llama", "LlamaForCausalLM"},
                                         {Architecture::kMistral, "mistral", "MistralForCausalLM"},
                                         {Architecture::kOpt, "opt", "OPTForCausalLM"}}};

Architecture read_architecture(const Keys& keys) {
  constexpr const char* kSupported =
      " is not supported (LlamaForCausalLM, MistralForCausalLM and OPTForCausalLM are)";
  const std::optional<std::string> type = keys.string("model_type");
  if (const json* list = keys.find("architectures")) {
    if (!list->is_array() || list->size() != 1 || !list->front().is_string()) {
      keys.fail("architectures", "must be a list of one name");
    }
    const auto name = list->front().get<std::string>();
    const auto* found = std::ranges::find(kNames, name, &Name::class_name);
    if (found == kNames.end()) keys.fail("architectures", in_quotes(name) + kSupported);
    if (type && *type != found->model_type)
      keys.fail("model_type", in_quotes(*type) + " does not go with " + in_quotes(name));
    return found->architecture;
  }
  if (!type) keys.fail("model_type", "is missing, and so is architectures");
  const auto* found = std::ranges::find(kNames, *type, &Name::model_type);
  if (found == kNames.end()) keys.fail("model_type", in_quotes(*type) + kSupported);
  return found->architecture;
}

// The base of the rotary frequencies. Three spellings: rope_theta beside rope_scaling (null, or a
// dict whose "rope_type" was once called "type"), or both inside rope_parameters.
double read_rope_theta(const Keys& keys) {
  constexpr double kSmallest = 1.0;
  constexpr double kLargest = 1e12;
  std::optional<double> theta;
  if (const json* value = keys.find("rope_theta")) {
    theta = keys.number("rope_theta", *value, kSmallest, kLargest);
  }
  for (const std::string key : {"rope_scaling", "rope_parameters"}) {
    const json* rope = keys.find(key);
    if (rope == nullptr) continue;
    if (!rope->is_object()) keys.fail(key, "must be null or an object");
    for (const auto& [name, value] : rope->items()) {
      if (value.is_null()) continue;
      const std::string path = key + "." + name;
      if (name == "rope_type" || name == "type") {
        if (value != "default")
          keys.fail(path, "rope scaling is not supported: only \"default\" is");
      } else if (name == "rope_theta") {
        const double inner = keys.number(path, value, kSmallest, kLargest);
        if (theta && *theta != inner) keys.fail(path, "contradicts another rope_theta");
        theta = inner;
      } else if (name != "partial_rotary_factor" || value != 1.0) {
        keys.fail(path, "is not supported");
      }
    }
  }
  if (const json* part = keys.find("partial_rotary_factor"); part != nullptr && *part != 1.0) {
    keys.fail("partial_rotary_factor", "is not supported");
  }
  return theta.value_or(10000.0);
}

DType read_dtype(const Keys& keys) {
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

void require_activation(const Keys& keys, const char* key, const char* supported) {
  const auto activation = keys.string(key);
  if (activation && *activation != supported) {
    keys.fail(key, in_quotes(*activation) + " is not supported (" + supported + " is)");
  }
}

void read_llama(const Keys& keys, ModelConfig& config) {
  const bool mistral = config.architecture == Architecture::kMistral;
  for (const char* key : {"attention_bias", "mlp_bias"}) {
    if (keys.boolean(key, false)) keys.fail(key, "biases are not supported");
  }
  require_activation(keys, "hidden_act", "silu");

  config.intermediate_size = keys.size("intermediate_size");
  // Absence takes the default of transformers' MistralConfig, null means one key/value head for
  // each query head.
  const bool mistral_default = mistral && keys.absent("num_key_value_heads");
  config.kv_heads = keys.size("num_key_value_heads", kMaxSize, mistral_default ? 8 : config.heads);
  if (config.heads % config.kv_heads != 0) {
    keys.fail("num_key_value_heads", "must divide num_attention_heads");
  }
  if (keys.find("head_dim") == nullptr && config.hidden_size % config.heads != 0) {
    keys.fail("num_attention_heads", "must divide hidden_size where there is no head_dim");
  }
  config.head_dim = keys.size("head_dim", kMaxSize, config.hidden_size / config.heads);
  if (config.head_dim % 2 != 0)
    keys.fail("head_dim", "must be even (rotary embedding turns pairs)");
  if (config.heads * config.head_dim > kMaxSize)
    keys.fail("head_dim", "times num_attention_heads is too large");
  config.embedding_size = config.hidden_size;
  config.max_positions =
      keys.size("max_position_embeddings", kMaxPositions, mistral ? 131072 : 2048);
  if (mistral) {
    config.sliding_window =
        keys.absent("sliding_window") ? 4096 : keys.size("sliding_window", kMaxPositions, 0);
  }
  const json* epsilon = keys.find("rms_norm_eps");
  config.norm_epsilon = epsilon == nullptr
                            ? 1e-6f
                            : static_cast<float>(keys.number("rms_norm_eps", *epsilon, 1e-12, 0.1));
  config.rope_theta = read_rope_theta(keys);
  config.tied_embeddings = keys.boolean("tie_word_embeddings", false);
  config.bos = 1;
}

void read_opt(const Keys& keys, ModelConfig& config) {
  require_activation(keys, "activation_function", "relu");
  config.intermediate_size = keys.size("ffn_dim");
  if (config.hidden_size % config.heads != 0) {
    keys.fail("num_attention_heads", "must divide hidden_size");
  }
  config.kv_heads = config.heads;
  config.head_dim = config.hidden_size / config.heads;
  config.embedding_size = keys.size("word_embed_proj_dim", kMaxSize, config.hidden_size);
  // Positions are rows of a table here, not angles.
  config.max_positions = keys.size("max_position_embeddings", kMaxSize, 2048);
  config.norm_epsilon = 1e-5f;  // torch's own, which no key changes
  config.linear_bias = keys.boolean("enable_bias", true);
  config.norm_first = keys.boolean("do_layer_norm_before", true);
  config.affine_norms = keys.boolean("layer_norm_elementwise_affine", true);
  config.final_norm = config.norm_first && !keys.boolean("_remove_final_layer_norm", false);
  config.tied_embeddings = keys.boolean("tie_word_embeddings", true);
  config.bos = 2;
}

}  // namespace

ModelConfig read_model_config(const std::filesystem::path& directory) {
  const std::filesystem::path file = directory / "config.json";
  const Keys keys(file, read_json_file(file, kMaxConfigBytes));
  ModelConfig config;
  config.architecture = read_architecture(keys);
  if (keys.find("quantization_config") != nullptr) {
    keys.fail("quantization_config", "this model is quantized already; give the original one");
  }
  config.hidden_size = keys.size("hidden_size");
  config.blocks = keys.size("num_hidden_layers", kMaxBlocks);
  config.heads = keys.size("num_attention_heads");
  config.vocabulary = keys.size("vocab_size");
  if (config.architecture == Architecture::kOpt) {
    read_opt(keys, config);
  } else {
    read_llama(keys, config);
  }
  config.dtype = read_dtype(keys);

  const auto token = [&](const char* key, const json& value) {
    // -1 stands for "none" in old configs.
    return static_cast<int>(keys.integer(key, value, -1, config.vocabulary - 1));
  };
  if (!keys.absent("bos_token_id")) {
    const json* bos = keys.find("bos_token_id");
    config.bos = bos == nullptr ? -1 : token("bos_token_id", *bos);
  }
  if (const json* eos = keys.find("eos_token_id")) {
    for (const json& one : eos->is_array() ? *eos : json::array({*eos})) {
      if (const int id = token("eos_token_id", one); id >= 0) config.eos.push_back(id);
    }
  } else if (keys.absent("eos_token_id")) {
    config.eos = {2};
  }
  return config;
}

}  // namespace roundhouse
