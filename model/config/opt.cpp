#include "model/config/families.h"

namespace roundhouse {

void read_opt(const ConfigKeys& keys, ModelConfig& config) {
  require_activation(keys, "activation_function", "relu");
  config.intermediate_size = keys.size("ffn_dim");
  if (config.hidden_size % config.heads != 0) {
    keys.fail("num_attention_heads", "must divide hidden_size");
  }
  config.kv_heads = config.heads;
  config.head_dim = config.hidden_size / config.heads;
  config.embedding_size =
      keys.size("word_embed_proj_dim", ConfigKeys::kMostSize, config.hidden_size);
  // Positions are rows of a table here, not angles.
  config.max_positions = keys.size("max_position_embeddings", ConfigKeys::kMostSize, 2048);
  config.norm_epsilon = 1e-5f;  // torch's own, which no key changes
  config.qkv_bias = config.output_bias = config.mlp_bias = keys.boolean("enable_bias", true);
  config.norm_first = keys.boolean("do_layer_norm_before", true);
  config.affine_norms = keys.boolean("layer_norm_elementwise_affine", true);
  config.final_norm = config.norm_first && !keys.boolean("_remove_final_layer_norm", false);
  config.tied_embeddings = keys.boolean("tie_word_embeddings", true);
  config.bos = 2;
}

}  // namespace roundhouse
