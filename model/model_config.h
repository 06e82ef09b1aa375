// config.json of a Hugging Face model directory.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "kernels/transformer.h"
#include "model/rope.h"

namespace roundhouse {

enum class Architecture {
  kLlama,
  kMistral,
  kQwen2,
  kQwen3,
  kPhi3,
  kOlmo2,
  kGranite,
  kGemma2,
  kGemma3,
  kOpt
};

// An RMS norm of queries and keys, before they are rotated.
enum class QueryKeyNorm {
  kNone,
  kHeads,  // of each head by itself, with the same weights (Qwen3, Gemma 3)
  kAll     // of all heads together (OLMo 2)
};

struct ModelConfig {
  Architecture architecture = Architecture::kLlama;
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;
  std::int64_t blocks = 0;  // num_hidden_layers
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t vocabulary = 0;
  std::int64_t max_positions = 0;
  std::int64_t sliding_window = 0;  // 0: none
  std::vector<bool> windowed;       // by block: has the window; empty: all have
  float norm_epsilon = 0;
  RopeConfig rope;                        // all but OPT
  std::optional<RopeConfig> window_rope;  // of blocks that have the window; none: the same
  std::int64_t embedding_size = 0;  // width of embedding and head: hidden_size, but in opt-350m
  bool qkv_bias = false;            // queries', keys' and values' linears have biases
  bool output_bias = false;         // attention's output linear
  bool mlp_bias = false;            // the linears of the MLP
  bool tied_embeddings = false;
  DType dtype = DType::kF16;
  int bos = 1;
  std::vector<int> eos;

  // What tells blocks of the LLaMA kind from each other besides.
  bool fused_linears = false;     // one for queries, keys and values, one for gate and up (Phi-3)
  bool norms_of_inputs = true;    // norms of what attention and MLP read,
  bool norms_of_outputs = false;  // and of what they add: these alone (OLMo 2), or both (Gemma)
  float norm_offset = 0;          // RMS norms multiply with this plus their weight (Gemma: 1)
  GateFunction gate = GateFunction::kSilu;
  QueryKeyNorm query_key_norm = QueryKeyNorm::kNone;
  float attention_scale = 0;       // of scores; 0: 1 / sqrt(head_dim)
  float score_cap = 0;             // Attention::score_cap (Gemma 2)
  float logit_cap = 0;             // SoftCap of logits; 0: none (Gemma 2)
  float residual_multiplier = 1;   // of what attention and MLP add (Granite, as the next two)
  float embedding_multiplier = 1;  // Gemma's is sqrt(hidden_size), as `dtype` holds it
  float logits_divisor = 1;

  // What tells OPT's.
  bool norm_first = true;    // norms before attention and MLP, or after the sums
  bool affine_norms = true;  // norms have weights and biases
  bool final_norm = true;    // there is one after the last block

  // Of a block's attention; 0: none.
  std::int64_t window_of(std::int64_t block) const;
  bool has_window(std::int64_t block) const;
};

// Reads DIRECTORY/config.json. Throws InputError naming the file and the first key that is missing, of the wrong type, out of
// range (sizes are bounded, heads divide, ...), or not supported (another architecture, a kind of rotary scaling, ...).
ModelConfig read_model_config(const std::filesystem::path& directory);

}  // namespace roundhouse
