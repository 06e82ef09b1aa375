// What walks of whole models are tested on: the bundled model's blocks, vocabulary and positions, an eighth of its weights. What is
// compared are orders and bytes, and every mesh of every number of ranks walks it again and again.
#pragma once

#include <filesystem>

#include "base/file.h"
#include "tests/base/temporary_folder.h"
#include "tests/model/model_files.h"

namespace roundhouse {

// Groups of 32 or 64 divide its rows; q_proj, gate_proj and up_proj have rows, down_proj columns for more than one tile.
inline nlohmann::json narrow_config() {
  auto config = nlohmann::json::parse(read_text_file(tiny_world() / "config.json"));
  config.update({{"hidden_size", 64},
                 {"intermediate_size", 320},
                 {"num_attention_heads", 5},
                 {"num_key_value_heads", 1},
                 {"head_dim", 64}});
  return config;
}

// Written once by each process.
inline const std::filesystem::path& narrow_model() {
  static const TemporaryFolder folder;
  [[maybe_unused]] static const bool written = [] {
    write_model(folder.path(), narrow_config(), formula_tensors(narrow_config(), DType::kF16));
    return true;
  }();
  return folder.path();
}

}  // namespace roundhouse
