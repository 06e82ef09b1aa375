// Model directories of true shapes with made-up weights, for benchmarks and memory tests; never evidence of accuracy.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "model/model_config.h"

namespace roundhouse {

// The shapes of published models ("llama-2-70b", "mistral-7b", ...) and of the bundled one ("tiny-world").
std::vector<std::string> known_shapes();
ModelConfig shape_like(const std::string& name);  // throws InputError listing the names

struct SyntheticOptions {
  ModelConfig config;
  std::uint64_t seed = 1;
  std::filesystem::path
      tokenizer;  // a model directory whose tokenizer files are copied; empty: none
  std::int64_t max_shard_bytes = std::int64_t{5} << 30;
};

// Writes config.json and float16 safetensors. Weights are normal with standard deviation 1 / sqrt(inputs), rows scaled by
// exp(0.3 normal) (heavy tails), one input channel in 200 four times as large; norm weights have outliers of 8 in one
// channel of 200, so that activations have outlier channels as those of large models do; biases are small. The same seed gives the same
// bytes. Throws InputError if `directory` exists and is not empty.
void write_synthetic_model(const SyntheticOptions& options, const std::filesystem::path& directory);

}  // namespace roundhouse
