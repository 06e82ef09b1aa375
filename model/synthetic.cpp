#include "model/synthetic.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/dtype.h"
#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/random.h"
#include "model/architectures/tensor_names.h"
#include "model/checkpoint/safetensors.h"
#include "model/config/config_json.h"
#include "model/tokenizer/tokenizer.h"

namespace roundhouse {
namespace {

// What read_model_config() would find in the config.json of each.
ModelConfig llama(std::int64_t hidden, std::int64_t intermediate, std::int64_t blocks,
                  std::int64_t heads, std::int64_t kv_heads, std::int64_t positions,
                  float epsilon) {
  ModelConfig config;
  config.hidden_size = hidden;
  config.intermediate_size = intermediate;
  config.blocks = blocks;
  config.heads = heads;
  config.kv_heads = kv_heads;
  config.head_dim = hidden / heads;
  config.vocabulary = 32000;
  config.max_positions = positions;
  config.norm_epsilon = epsilon;
  config.embedding_size = hidden;
  config.rope.columns = config.head_dim;
  config.eos = {2};
  return config;
}

// Grouped queries in heads of 128, as all newer models have.
ModelConfig newer(Architecture architecture, std::int64_t hidden, std::int64_t intermediate,
                  std::int64_t blocks, std::int64_t heads, std::int64_t kv_heads,
                  std::int64_t vocabulary, double theta) {
  ModelConfig config = llama(hidden, intermediate, blocks, heads, kv_heads, 32768, 1e-6f);
  config.architecture = architecture;
  config.head_dim = config.rope.columns = 128;
  config.vocabulary = vocabulary;
  config.rope.theta = theta;
  return config;
}

ModelConfig llama_3(std::int64_t hidden, std::int64_t intermediate, std::int64_t blocks,
                    std::int64_t heads) {
  ModelConfig config =
      newer(Architecture::kLlama, hidden, intermediate, blocks, heads, 8, 128256, 500000.0);
  config.norm_epsilon = 1e-5f;
  config.max_positions = 131072;
  config.rope.scaling = RopeConfig::Scaling::kLlama3;
  config.rope.factor = 8.0;
  config.rope.original_positions = 8192;
  return config;
}

ModelConfig qwen_25_7b() {
  ModelConfig config = newer(Architecture::kQwen2, 3584, 18944, 28, 28, 4, 152064, 1e6);
  config.qkv_bias = true;
  return config;
}

ModelConfig qwen_3_8b() {
  ModelConfig config = newer(Architecture::kQwen3, 4096, 12288, 36, 32, 8, 151936, 1e6);
  config.query_key_norm = QueryKeyNorm::kHeads;
  return config;
}

ModelConfig phi_3_mini() {
  ModelConfig config = llama(3072, 8192, 32, 32, 32, 4096, 1e-5f);
  config.architecture = Architecture::kPhi3;
  config.vocabulary = 32064;
  config.sliding_window = 2047;
  config.fused_linears = true;
  return config;
}

ModelConfig olmo_2_7b() {
  ModelConfig config = llama(4096, 11008, 32, 32, 32, 4096, 1e-6f);
  config.architecture = Architecture::kOlmo2;
  config.vocabulary = 100352;
  config.rope.theta = 500000.0;
  config.norms_of_inputs = false;
  config.norms_of_outputs = true;
  config.query_key_norm = QueryKeyNorm::kAll;
  return config;
}

ModelConfig granite_8b() {
  ModelConfig config = newer(Architecture::kGranite, 4096, 12800, 40, 32, 8, 49155, 1e7);
  config.norm_epsilon = 1e-5f;
  config.tied_embeddings = true;
  config.attention_scale = 0.0078125f;
  config.residual_multiplier = 0.22f;
  config.embedding_multiplier = 12.0f;
  config.logits_divisor = 16.0f;
  return config;
}

// In heads of 256, tied, with norms of inputs and outputs.
ModelConfig gemma(Architecture architecture, std::int64_t hidden, std::int64_t intermediate,
                  std::int64_t blocks, std::int64_t heads, std::int64_t kv_heads,
                  std::int64_t vocabulary, std::int64_t window, std::int64_t pattern) {
  ModelConfig config =
      newer(architecture, hidden, intermediate, blocks, heads, kv_heads, vocabulary, 10000.0);
  config.head_dim = config.rope.columns = 256;
  config.tied_embeddings = true;
  config.norms_of_outputs = true;
  config.norm_offset = 1.0f;
  config.gate = GateFunction::kGeluTanh;
  config.attention_scale = 0.0625f;
  config.embedding_multiplier =
      rounded_to(config.dtype, std::sqrt(static_cast<float>(config.hidden_size)));
  config.sliding_window = window;
  for (std::int64_t block = 0; block < blocks; ++block) {
    config.windowed.push_back((block + 1) % pattern != 0);
  }
  config.bos = 2;
  config.eos = {1};
  return config;
}

ModelConfig gemma_2_9b() {
  ModelConfig config = gemma(Architecture::kGemma2, 3584, 14336, 42, 16, 8, 256000, 4096, 2);
  config.max_positions = 8192;
  config.score_cap = 50.0f;
  config.logit_cap = 30.0f;
  return config;
}

ModelConfig gemma_3_1b() {
  ModelConfig config = gemma(Architecture::kGemma3, 1152, 6912, 26, 4, 1, 262144, 512, 6);
  config.query_key_norm = QueryKeyNorm::kHeads;
  config.window_rope = config.rope;
  config.rope.theta = 1e6;
  return config;
}

ModelConfig smollm2_135m() {
  ModelConfig config = llama(576, 1536, 30, 9, 3, 8192, 1e-5f);
  config.vocabulary = 49152;
  config.rope.theta = 100000.0;
  config.tied_embeddings = true;
  return config;
}

ModelConfig mistral_7b() {
  ModelConfig config = llama(4096, 14336, 32, 32, 8, 32768, 1e-5f);
  config.architecture = Architecture::kMistral;
  config.sliding_window = 4096;
  return config;
}

ModelConfig tiny_world() {
  ModelConfig config = llama(256, 768, 6, 8, 4, 512, 1e-5f);
  config.vocabulary = 1024;
  return config;
}

ModelConfig opt(std::int64_t hidden, std::int64_t blocks, std::int64_t heads) {
  ModelConfig config = llama(hidden, 4 * hidden, blocks, heads, heads, 2048, 1e-5f);
  config.architecture = Architecture::kOpt;
  config.rope = {};
  config.vocabulary = 50272;
  config.qkv_bias = config.output_bias = config.mlp_bias = true;
  config.tied_embeddings = true;
  config.bos = 2;
  return config;
}

ModelConfig opt_350m() {
  ModelConfig config = opt(1024, 24, 16);
  config.embedding_size = 512;
  config.norm_first = false;
  config.final_norm = false;
  return config;
}

const std::map<std::string, ModelConfig>& table() {
  static const std::map<std::string, ModelConfig> shapes{
      {"llama-7b", llama(4096, 11008, 32, 32, 32, 2048, 1e-6f)},
      {"llama-13b", llama(5120, 13824, 40, 40, 40, 2048, 1e-6f)},
      {"llama-30b", llama(6656, 17920, 60, 52, 52, 2048, 1e-6f)},
      {"llama-65b", llama(8192, 22016, 80, 64, 64, 2048, 1e-6f)},
      {"llama-2-7b", llama(4096, 11008, 32, 32, 32, 4096, 1e-5f)},
      {"llama-2-13b", llama(5120, 13824, 40, 40, 40, 4096, 1e-5f)},
      {"llama-2-70b", llama(8192, 28672, 80, 64, 8, 4096, 1e-5f)},
      {"llama-1.1b", llama(2048, 5632, 22, 32, 4, 2048, 1e-5f)},
      {"llama-3.1-8b", llama_3(4096, 14336, 32, 32)},
      {"llama-3.1-70b", llama_3(8192, 28672, 80, 64)},
      {"mistral-7b", mistral_7b()},
      {"qwen2.5-7b", qwen_25_7b()},
      {"qwen3-8b", qwen_3_8b()},
      {"phi-3-mini", phi_3_mini()},
      {"olmo-2-7b", olmo_2_7b()},
      {"granite-3-8b", granite_8b()},
      {"gemma-2-9b", gemma_2_9b()},
      {"gemma-3-1b", gemma_3_1b()},
      {"smollm2-135m", smollm2_135m()},
      {"opt-125m", opt(768, 12, 12)},
      {"opt-350m", opt_350m()},
      {"opt-1.3b", opt(2048, 24, 32)},
      {"opt-2.7b", opt(2560, 32, 32)},
      {"opt-6.7b", opt(4096, 32, 32)},
      {"opt-13b", opt(5120, 40, 40)},
      {"tiny-world", tiny_world()},
  };
  return shapes;
}

// Normal numbers by a table of 4096 quantiles: five from one random number, so that 70B shapes are written in seconds.
class Normals {
 public:
  Normals() {
    for (std::size_t i = 0; i < table_.size(); ++i) {
      const double p = (static_cast<double>(i) + 0.5) / static_cast<double>(table_.size());
      double low = -5, high = 5;
      for (int step = 0; step < 60; ++step) {
        const double middle = (low + high) / 2;
        (0.5 * std::erfc(-middle / std::sqrt(2.0)) < p ? low : high) = middle;
      }
      table_[i] = static_cast<float>(low);
    }
  }
  void fill(Random& random, std::vector<float>& row) const {
    for (std::size_t i = 0; i < row.size();) {
      std::uint64_t bits = random.next();
      for (int k = 0; k < 5 && i < row.size(); ++k, bits >>= 12) row[i++] = table_[bits & 4095];
    }
  }

 private:
  std::array<float, 4096> table_;
};

// The scale of each input channel: one in 200 is an outlier.
std::vector<float> channel_scales(Random& random, std::int64_t channels, float outlier) {
  std::vector<float> scales(static_cast<std::size_t>(channels), 1.0f);
  for (float& scale : scales) {
    if (random.below(200) == 0) scale = outlier;
  }
  return scales;
}

class Writer {
 public:
  explicit Writer(std::uint64_t seed) : seed_(seed) {}

  void write(SafetensorsWriter& file, const TensorInfo& tensor) {
    Random random(seed_ ^ std::stoull(xxh3_hex(tensor.name).substr(0, 16), nullptr, 16));
    const bool bias = tensor.name.ends_with(".bias");
    const bool norm = tensor.shape.size() == 1 && !bias;
    const std::int64_t cols = tensor.shape.back();
    const std::int64_t rows = norm || bias ? 1 : tensor.shape[0];
    const std::vector<float> channels = channel_scales(random, cols, norm ? 8.0f : 4.0f);
    std::vector<float> values(static_cast<std::size_t>(cols));
    std::vector<std::uint16_t> halves(values.size());
    for (std::int64_t r = 0; r < rows; ++r) {
      normals_.fill(random, values);
      const float scale = static_cast<float>(std::exp(0.3 * random.normal()) /
                                             std::sqrt(static_cast<double>(cols)));
      for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = norm   ? channels[i] * (1.0f + 0.1f * values[i])
                    : bias ? 0.1f * values[i]
                           : channels[i] * scale * values[i];
      }
      convert(DType::kF32, values.data(), DType::kF16, halves.data(), values.size());
      file.write(tensor.name, std::as_bytes(std::span(halves)));
    }
  }

 private:
  std::uint64_t seed_;
  Normals normals_;
};

std::vector<TensorInfo> tensors_of(const ModelConfig& config) {
  std::vector<TensorInfo> tensors = tensors_before_blocks(config);
  const auto add = [&](const std::vector<TensorInfo>& more) {
    tensors.insert(tensors.end(), more.begin(), more.end());
  };
  for (std::int64_t block = 0; block < config.blocks; ++block) add(tensors_of_block(config, block));
  add(tensors_after_blocks(config));
  return tensors;
}

std::int64_t bytes_of(const TensorInfo& tensor) { return element_count(tensor.shape) * 2; }

}  // namespace

std::vector<std::string> known_shapes() {
  std::vector<std::string> names;
  for (const auto& [name, config] : table()) names.push_back(name);
  return names;
}

ModelConfig shape_like(const std::string& name) {
  const auto found = table().find(name);
  if (found == table().end()) {
    std::string names;
    for (const std::string& each : known_shapes()) names += (names.empty() ? "" : ", ") + each;
    throw InputError("--like " + name + ": not one of " + names);
  }
  return found->second;
}

void write_synthetic_model(const SyntheticOptions& options,
                           const std::filesystem::path& directory) {
  if (std::filesystem::exists(directory) && !std::filesystem::is_empty(directory)) {
    throw InputError(directory.string() + " is there already and not empty");
  }
  std::filesystem::create_directories(directory);

  std::vector<std::vector<TensorInfo>> files(1);
  std::int64_t in_file = 0, total = 0;
  for (const TensorInfo& tensor : tensors_of(options.config)) {
    if (in_file > 0 && in_file + bytes_of(tensor) > options.max_shard_bytes) {
      files.emplace_back();
      in_file = 0;
    }
    files.back().push_back(tensor);
    in_file += bytes_of(tensor);
    total += bytes_of(tensor);
  }

  Writer writer(options.seed);
  nlohmann::ordered_json weight_map;
  for (std::size_t i = 0; i < files.size(); ++i) {
    const std::string name =
        files.size() > 1 ? fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, files.size())
                         : "model.safetensors";
    write_atomically(directory / name, [&](const std::filesystem::path& temp) {
      SafetensorsWriter file(temp, files[i], {{"format", "pt"}});
      for (const TensorInfo& tensor : files[i]) writer.write(file, tensor);
      file.close();
    });
    for (const TensorInfo& tensor : files[i]) weight_map[tensor.name] = name;
  }
  if (files.size() > 1) {
    const nlohmann::ordered_json index{{"metadata", {{"total_size", total}}},
                                       {"weight_map", weight_map}};
    write_text_atomically(directory / "model.safetensors.index.json", index.dump(1) + "\n");
  }
  if (!options.tokenizer.empty()) {
    for (const std::filesystem::path& file : tokenizer_files(options.tokenizer)) {
      std::filesystem::copy_file(file, directory / file.filename());
    }
  }
  write_text_atomically(directory / "config.json", config_json(options.config));
}

}  // namespace roundhouse
