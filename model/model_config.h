// config.json of a Hugging Face model directory.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/dtype.h"

namespace roundhouse {

enum class Architecture { kLlama, kMistral };

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
  double rope_theta = 10000.0;
  bool tied_embeddings = false;
  DType dtype = DType::kF16;
  int bos = 1;
  std::vector<int> eos;
};

// Reads DIRECTORY/config.json. Throws InputError naming the file and the key for anything missing, of the wrong type,
// out of range (sizes are bounded, heads divide, ...), or not supported (another architecture, rope scaling, biases, ...).
ModelConfig read_model_config(const std::filesystem::path& directory);

}  // namespace roundhouse
