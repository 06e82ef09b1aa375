#include <algorithm>
#include <cmath>
#include <optional>
#include <string>

#include "base/dtype.h"
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
  bool tied_embeddings = false;
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
    case Architecture::kGemma2:
    case Architecture::kGemma3: {
      const bool third = architecture == Architecture::kGemma3;
      return {.kv_heads = 4,
              .head_dim = 256,
              .max_positions = third ? 131072 : 8192,
              .bos = 2,
              .eos = {1},
              .rope = {.theta = third ? 1e6 : 1e4},
              .tied_embeddings = true};
    }
    default:
      return {};
  }
}

bool is_gemma(Architecture architecture) {
  return architecture == Architecture::kGemma2 || architecture == Architecture::kGemma3;
}

// Which blocks have the window: those that "layer_types" lists, or where it is absent those from max_window_layers on; Gemma's have
// it but for every second or sixth one.
std::vector<bool> windowed_blocks(const ConfigKeys& keys, const ModelConfig& config) {
  const std::int64_t blocks = config.blocks;
  const std::int64_t first =
      keys.find("max_window_layers") == nullptr
          ? 28
          : keys.integer("max_window_layers", *keys.find("max_window_layers"), 0,
                         ConfigKeys::kMostSize);
  const std::int64_t pattern = config.architecture == Architecture::kGemma3
                                   ? keys.size("sliding_window_pattern", ConfigKeys::kMostSize, 6)
                                   : 2;
  std::vector<bool> windowed;
  const json* types = keys.find("layer_types");
  if (types == nullptr) {
    for (std::int64_t block = 0; block < blocks; ++block) {
      windowed.push_back(is_gemma(config.architecture) ? (block + 1) % pattern != 0
                                                       : block >= first);
    }
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
      const std::vector<bool> windowed = windowed_blocks(keys, config);
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
    case Architecture::kGemma2:
    case Architecture::kGemma3:
      config.windowed = windowed_blocks(keys, config);
      config.sliding_window = window(4096, 0);
      if (config.sliding_window == 0 && std::ranges::count(config.windowed, true) > 0)
        keys.refuse("sliding_window", "blocks of sliding_attention need a width");
      return;
    default:
      return;
  }
}

// What Gemma has besides. Both kinds share all but the caps and the rotation.
void read_gemma(const ConfigKeys& keys, ModelConfig& config) {
  const bool third = config.architecture == Architecture::kGemma3;
  if (keys.boolean("use_bidirectional_attention", false))
    keys.refuse("use_bidirectional_attention", "decoders that see what comes before alone are");
  config.norms_of_outputs = true;
  config.norm_offset = 1.0f;
  config.gate = GateFunction::kGeluTanh;
  if (third) config.query_key_norm = QueryKeyNorm::kHeads;
  config.attention_scale = static_cast<float>(
      1.0 / std::sqrt(keys.number_at("query_pre_attn_scalar", 1e-3, 1e9, 256.0)));
  config.embedding_multiplier = rounded_to(
      config.dtype, static_cast<float>(std::sqrt(static_cast<double>(config.hidden_size))));
  const auto cap = [&](const char* key, double absent) {
    return keys.absent(key) ? static_cast<float>(absent)
                            : static_cast<float>(keys.number_at(key, 1e-3, 1e6, 0.0));
  };
  config.logit_cap = cap("final_logit_softcapping", third ? 0.0 : 30.0);
  // transformers keeps the key and applies no cap: whatever a config wants with it, it is not what would be computed.
  if (third && keys.find("attn_logit_softcapping") != nullptr)
    keys.refuse("attn_logit_softcapping", "Gemma 3 has no caps on scores");
  config.score_cap = third ? 0.0f : cap("attn_logit_softcapping", 50.0);
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
    case Architecture::kGemma2:
    case Architecture::kGemma3:
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
  if (is_gemma(config.architecture)) {
    require_activation(keys, "hidden_activation", "gelu_pytorch_tanh");
  } else {
    require_activation(keys, "hidden_act", "silu");
  }

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
  if (config.architecture == Architecture::kGemma3) {
    const auto of_type = [&](const RopeOfType& of, const RopeDefaults& rope) {
      return read_rope_of_type(keys, of, config.head_dim, config.max_positions, rope);
    };
    config.rope = of_type({"full_attention", "rope_theta"}, defaults.rope);
    config.window_rope = of_type({"sliding_attention", "rope_local_base_freq"}, {.theta = 1e4});
  } else {
    config.rope = read_rope(keys, config.head_dim, config.max_positions, defaults.rope);
  }
  config.tied_embeddings = keys.boolean("tie_word_embeddings", defaults.tied_embeddings);
  config.bos = defaults.bos;
  config.eos = defaults.eos;

  config.fused_linears = config.architecture == Architecture::kPhi3;
  if (config.architecture == Architecture::kOlmo2) {
    config.norms_of_inputs = false;
    config.norms_of_outputs = true;
  }
  if (is_gemma(config.architecture)) read_gemma(keys, config);
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
