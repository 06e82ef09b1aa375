#include <optional>
#include <string>

#include "base/error.h"
#include "model/config/families.h"
#include "model/config/rope_keys.h"

namespace roundhouse {
namespace {

using nlohmann::json;

// What transformers' configs take for keys that are absent.
struct Defaults {
  std::optional<std::int64_t> kv_heads = std::nullopt;  // else as many as query heads
  std::optional<std::int64_t> head_dim = std::nullopt;  // else hidden_size / heads
  std::int64_t max_positions = 2048;
  double norm_epsilon = 1e-6;
  int bos = 1;
  std::vector<int> eos = {2};
  RopeDefaults rope = {};
};

Defaults defaults_of(Architecture architecture) {
  switch (architecture) {
    case Architecture::kMistral:
      return {.kv_heads = 8, .max_positions = 131072};
    case Architecture::kQwen2:
      return {.kv_heads = 32, .max_positions = 32768, .bos = -1, .eos = {}};
    case Architecture::kQwen3:
      return {.kv_heads = 32, .head_dim = 128, .max_positions = 32768, .bos = -1, .eos = {}};
    case Architecture::kPhi3:
      return {.max_positions = 4096,
              .norm_epsilon = 1e-5,
              .eos = {32000},
              .rope = {.may_be_partial = true, .original_positions = 4096}};
    case Architecture::kOlmo2:
      return {.norm_epsilon = 1e-5, .bos = -1, .eos = {50279}};
    default:
      return {};
  }
}

// Which blocks have the window: "layer_types", or those from max_window_layers on.
std::vector<bool> windowed_blocks(const ConfigKeys& keys, std::int64_t blocks) {
  const std::int64_t first =
      keys.find("max_window_layers") == nullptr
          ? 28
          : keys.integer("max_window_layers", *keys.find("max_window_layers"), 0,
                         ConfigKeys::kMostSize);
  std::vector<bool> windowed;
  const json* types = keys.find("layer_types");
  if (types == nullptr) {
    for (std::int64_t block = 0; block < blocks; ++block) windowed.push_back(block >= first);
    return windowed;
  }
  if (!types->is_array() || static_cast<std::int64_t>(types->size()) != blocks)
    keys.fail("layer_types", "must be a list of num_hidden_layers names");
  for (const json& type : *types) {
    if (type != "full_attention" && type != "sliding_attention")
      keys.refuse("layer_types", "full_attention and sliding_attention are");
    windowed.push_back(type == "sliding_attention");
  }
  return windowed;
}

void read_window(const ConfigKeys& keys, ModelConfig& config) {
  const auto window = [&](std::int64_t absent, std::int64_t null) {
    return keys.absent("sliding_window")
               ? absent
               : keys.size("sliding_window", ConfigKeys::kMostPositions, null);
  };
  switch (config.architecture) {
    case Architecture::kMistral:
      config.sliding_window = window(4096, 0);
      return;
    case Architecture::kPhi3:
      config.sliding_window = window(0, 0);
      return;
    case Architecture::kQwen2:
    case Architecture::kQwen3: {
      const bool has_window = keys.boolean("use_sliding_window", false);
      const std::int64_t width = has_window ? window(4096, 0) : 0;
      const std::vector<bool> windowed = windowed_blocks(keys, config.blocks);
      if (width > 0) {
        config.sliding_window = width;
        config.windowed = windowed;
      } else if (const json* types = keys.find("layer_types");
                 types != nullptr &&
                 *types != json(std::vector<std::string>(windowed.size(), "full_attention"))) {
        keys.refuse("layer_types", "there is no sliding_window, or use_sliding_window is false");
      }
      return;
    }
    default:
      return;
  }
}

void read_biases(const ConfigKeys& keys, ModelConfig& config) {
  const bool attention = keys.boolean("attention_bias", false);
  const bool mlp = keys.boolean("mlp_bias", false);
  switch (config.architecture) {
    case Architecture::kLlama:
    case Architecture::kGranite:
      config.qkv_bias = config.output_bias = attention;
      config.mlp_bias = mlp;
      return;
    case Architecture::kQwen2:
      config.qkv_bias = true;
      break;
    case Architecture::kQwen3:
    case Architecture::kOlmo2:
      config.qkv_bias = config.output_bias = attention;
      break;
    default:
      if (attention) keys.refuse("attention_bias", "this architecture has none");
      break;
  }
  if (mlp) keys.refuse("mlp_bias", "this architecture has none");
}

}  // namespace

void read_llama_kind(const ConfigKeys& keys, ModelConfig& config) {
  const Defaults defaults = defaults_of(config.architecture);
  require_activation(keys, "hidden_act", "silu");

  config.intermediate_size = keys.size("intermediate_size");
  // Absence takes the default, null means one key/value head for each query head.
  config.kv_heads = keys.size(
      "num_key_value_heads", ConfigKeys::kMostSize,
      keys.absent("num_key_value_heads") ? defaults.kv_heads.value_or(config.heads) : config.heads);
  if (config.heads % config.kv_heads != 0) {
    keys.fail("num_key_value_heads", "must divide num_attention_heads");
  }
  if (keys.find("head_dim") == nullptr && !defaults.head_dim &&
      config.hidden_size % config.heads != 0) {
    keys.fail("num_attention_heads", "must divide hidden_size where there is no head_dim");
  }
  config.head_dim = keys.size("head_dim", ConfigKeys::kMostSize,
                              defaults.head_dim.value_or(config.hidden_size / config.heads));
  if (config.head_dim % 2 != 0)
    keys.fail("head_dim", "must be even (rotary embedding turns pairs)");
  if (config.heads * config.head_dim > ConfigKeys::kMostSize)
    keys.fail("head_dim", "times num_attention_heads is too large");
  config.embedding_size = config.hidden_size;
  config.max_positions =
      keys.size("max_position_embeddings", ConfigKeys::kMostPositions, defaults.max_positions);
  config.norm_epsilon =
      static_cast<float>(keys.number_at("rms_norm_eps", 1e-12, 0.1, defaults.norm_epsilon));
  read_biases(keys, config);
  read_window(keys, config);
  config.rope = read_rope(keys, config.head_dim, config.max_positions, defaults.rope);
  config.tied_embeddings = keys.boolean("tie_word_embeddings", false);
  config.bos = defaults.bos;
  config.eos = defaults.eos;

  config.fused_linears = config.architecture == Architecture::kPhi3;
  config.norms_of_outputs = config.architecture == Architecture::kOlmo2;
  if (config.architecture == Architecture::kQwen3) config.query_key_norm = QueryKeyNorm::kHeads;
  if (config.architecture == Architecture::kOlmo2) config.query_key_norm = QueryKeyNorm::kAll;
  if (config.architecture == Architecture::kGranite) {
    const auto multiplier = [&](const char* key) {
      return static_cast<float>(keys.number_at(key, 1e-6, 1e6, 1.0));
    };
    config.attention_scale = multiplier("attention_multiplier");
    config.residual_multiplier = multiplier("residual_multiplier");
    config.embedding_multiplier = multiplier("embedding_multiplier");
    config.logits_divisor = multiplier("logits_scaling");
  }
}

}  // namespace roundhouse
