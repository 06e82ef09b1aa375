// config.json of a Hugging Face model directory.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/dtype.h"

namespace roundhouse {

enum class Architecture { kLlama, kMistral, kOpt };

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
  float norm_epsilon = 0;
  double rope_theta = 10000.0;      // LLaMA and Mistral
  std::int64_t embedding_size = 0;  // width of embedding and head: hidden_size, but in opt-350m
  bool linear_bias = false;         // the linears of blocks have biases
  bool norm_first = true;           // OPT: norms before attention and MLP, or after the sums
  bool affine_norms = true;         // OPT: norms have weights and biases
  bool final_norm = true;           // there is one after the last block
  bool tied_embeddings = false;
  DType dtype = DType::kF16;
  int bos = 1;
  std::vector<int> eos;
};

// Reads DIRECTORY/config.json. Throws InputError naming the file and the key for anything missing, of the wrong type,
// out of range (sizes are bounded, heads divide, ...), or not supported (another architecture, rope scaling, biases, ...).
ModelConfig read_model_config(const std::filesystem::path& directory);

}  // namespace roundhouse
