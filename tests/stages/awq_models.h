// Models whose blocks AWQ scales in other ways than those of the bundled one.
#pragma once

#include <filesystem>

#include "model/synthetic.h"
#include "tests/base/temporary_folder.h"
#include "tests/model/model_files.h"

namespace roundhouse {

// Every query head has its own keys and values: there o_proj can be scaled.
inline std::filesystem::path ungrouped_model(const TemporaryFolder& folder) {
  SyntheticOptions options{.config = shape_like("tiny-world"), .seed = 3, .tokenizer = {}};
  options.config.kv_heads = options.config.heads;
  const std::filesystem::path path = folder.path() / "model";
  write_synthetic_model(options, path);
  return path;
}

// Biases, LayerNorm and ReLU. Float32, so that biases are not rounded.
inline std::filesystem::path opt_model(const TemporaryFolder& folder, bool norm_first) {
  nlohmann::json config = small_opt_config();
  config["hidden_size"] = config["word_embed_proj_dim"] = 64;
  config["ffn_dim"] = 96;
  config["vocab_size"] = 1024;
  config["do_layer_norm_before"] = norm_first;
  config["torch_dtype"] = "float32";
  const std::filesystem::path path = folder.path() / "opt";
  std::filesystem::create_directories(path);
  write_model(path, config, formula_tensors(config, DType::kF32));
  return path;
}

// Another architecture of the LLaMA kind, by its name in small_config_of(); of float32, too, unless said otherwise.
inline std::filesystem::path model_of(const TemporaryFolder& folder, const std::string& name,
                                      std::int64_t kv_heads, DType type = DType::kF32) {
  nlohmann::json config = small_config_of(name);
  config["hidden_size"] = 64;
  config["intermediate_size"] = 96;
  config["num_key_value_heads"] = kv_heads;
  config["vocab_size"] = 1024;
  config["torch_dtype"] = torch_name_of(type);
  const std::filesystem::path path = folder.path() / name;
  std::filesystem::create_directories(path);
  write_model(path, config, formula_tensors(config, type));
  return path;
}

}  // namespace roundhouse
