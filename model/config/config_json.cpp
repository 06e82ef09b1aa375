#include "model/config/config_json.h"

#include <algorithm>
#include <cmath>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "model/config/families.h"

namespace roundhouse {
namespace {

using Json = nlohmann::ordered_json;

Json opt_config(const ModelConfig& c) {
  return {{"hidden_size", c.hidden_size},
          {"ffn_dim", c.intermediate_size},
          {"num_hidden_layers", c.blocks},
          {"num_attention_heads", c.heads},
          {"vocab_size", c.vocabulary},
          {"word_embed_proj_dim", c.embedding_size},
          {"max_position_embeddings", c.max_positions},
          {"do_layer_norm_before", c.norm_first},
          {"enable_bias", c.qkv_bias},
          {"layer_norm_elementwise_affine", c.affine_norms},
          {"_remove_final_layer_norm", c.norm_first && !c.final_norm},
          {"tie_word_embeddings", c.tied_embeddings},
          {"activation_function", "relu"},
          {"pad_token_id", 1}};
}

// Without theta and the share of rotated columns; null where nothing is scaled.
Json rope_scaling(const RopeConfig& rope) {
  using Scaling = RopeConfig::Scaling;
  Json json;
  const auto with_positions = [&](const char* type) {
    json = {{"rope_type", type},
            {"factor", rope.factor},
            {"original_max_position_embeddings", rope.original_positions}};
  };
  switch (rope.scaling) {
    case Scaling::kNone:
      return {};
    case Scaling::kLinear:
      return {{"rope_type", "linear"}, {"factor", rope.factor}};
    case Scaling::kDynamic:
      return {{"rope_type", "dynamic"}, {"factor", rope.factor}};
    case Scaling::kLlama3:
      with_positions("llama3");
      json["low_freq_factor"] = rope.low_frequency_factor;
      json["high_freq_factor"] = rope.high_frequency_factor;
      break;
    case Scaling::kYarn:
      with_positions("yarn");
      json["beta_fast"] = rope.beta_fast;
      json["beta_slow"] = rope.beta_slow;
      json["truncate"] = rope.ramp_of_whole_pairs;
      json["attention_factor"] = rope.magnitude;
      break;
    case Scaling::kLongRope:
      with_positions("longrope");
      json["short_factor"] = rope.short_factors;
      json["long_factor"] = rope.long_factors;
      json["attention_factor"] = rope.magnitude;
      break;
  }
  return json;
}

// With theta.
Json rope_parameters(const RopeConfig& rope) {
  Json json = rope_scaling(rope);
  if (json.is_null()) json["rope_type"] = "default";
  json["rope_theta"] = rope.theta;
  return json;
}

void add_gemma_keys(const ModelConfig& c, Json& json) {
  const auto cap = [](float value) { return value > 0.0f ? Json(value) : Json(); };
  const double scale = static_cast<double>(c.attention_scale);
  json["query_pre_attn_scalar"] = std::llround(1.0 / (scale * scale));
  json["hidden_activation"] = "gelu_pytorch_tanh";
  json["final_logit_softcapping"] = cap(c.logit_cap);
  json["attn_logit_softcapping"] = cap(c.score_cap);
  json["pad_token_id"] = 0;
  if (c.window_rope) {
    json.erase("rope_theta");
    json.erase("rope_scaling");
    json["rope_parameters"] = {{"full_attention", rope_parameters(c.rope)},
                               {"sliding_attention", rope_parameters(*c.window_rope)}};
  }
  json.erase("hidden_act");
  json.erase("use_sliding_window");
}

Json llama_kind_config(const ModelConfig& c) {
  Json json = {{"hidden_size", c.hidden_size},
               {"intermediate_size", c.intermediate_size},
               {"num_hidden_layers", c.blocks},
               {"num_attention_heads", c.heads},
               {"num_key_value_heads", c.kv_heads},
               {"head_dim", c.head_dim},
               {"vocab_size", c.vocabulary},
               {"max_position_embeddings", c.max_positions},
               {"rms_norm_eps", c.norm_epsilon},
               {"rope_theta", c.rope.theta},
               {"hidden_act", "silu"},
               {"tie_word_embeddings", c.tied_embeddings}};
  if (Json scaling = rope_scaling(c.rope); !scaling.is_null()) json["rope_scaling"] = scaling;
  if (c.rope.columns < c.head_dim) {  // cut to an integer when it is read
    json["partial_rotary_factor"] =
        (static_cast<double>(c.rope.columns) + 0.25) / static_cast<double>(c.head_dim);
  }
  if (c.output_bias) json["attention_bias"] = true;
  if (c.mlp_bias) json["mlp_bias"] = true;
  if (c.sliding_window > 0 || c.architecture == Architecture::kMistral) {
    json["sliding_window"] = c.sliding_window > 0 ? Json(c.sliding_window) : Json();
  }
  if (!c.windowed.empty()) {
    json["use_sliding_window"] = true;
    // A model that is made of fewer blocks than this one, or of more, has them in the same order.
    for (std::int64_t block = 0; block < c.blocks; ++block) {
      const bool has = c.windowed[static_cast<std::size_t>(block) % c.windowed.size()];
      json["layer_types"].push_back(has ? "sliding_attention" : "full_attention");
    }
  }
  if (c.architecture == Architecture::kPhi3) json["pad_token_id"] = 0;
  if (c.architecture == Architecture::kGranite) {
    json["attention_multiplier"] = c.attention_scale;
    json["residual_multiplier"] = c.residual_multiplier;
    json["embedding_multiplier"] = c.embedding_multiplier;
    json["logits_scaling"] = c.logits_divisor;
  }
  if (c.architecture == Architecture::kGemma2 || c.architecture == Architecture::kGemma3)
    add_gemma_keys(c, json);
  return json;
}

}  // namespace

std::string config_json(const ModelConfig& config) {
  const auto family = std::ranges::find(families(), config.architecture, &Family::architecture);
  require(family != families().end(), "an architecture without a name");
  Json json = {{"architectures", {family->class_name}}, {"model_type", family->model_type}};
  json.update(config.architecture == Architecture::kOpt ? opt_config(config)
                                                        : llama_kind_config(config));
  json["bos_token_id"] = config.bos >= 0 ? Json(config.bos) : Json();
  json["eos_token_id"] = config.eos.empty() ? Json() : Json(config.eos);
  if (config.eos.size() == 1) json["eos_token_id"] = config.eos.front();
  json["torch_dtype"] = "float16";
  return json.dump(1) + "\n";
}

}  // namespace roundhouse
