// Model directories made on the spot, and what a wrong one answers.
#pragma once

#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/tensor.h"
#include "model/checkpoint/safetensors.h"
#include "tests/base/temporary_folder.h"
#include "tests/source_folder.h"

namespace roundhouse {

inline void write_file(const std::filesystem::path& path, std::string_view bytes) {
  std::filesystem::remove(
      path);  // some file systems flush a file that is cut to nothing and written again: slow
  std::ofstream(path, std::ios::binary)
      .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

// What the InputError of an action says; a text that no test expects if there is none.
template <class Action>
std::string input_error_of(Action&& action) {
  try {
    action();
  } catch (const InputError& error) {
    return error.what();
  }
  return "(no InputError)";
}

// A file with this header text, as it is, and this many bytes of data.
inline std::string safetensors_bytes(const std::string& header, std::size_t data_bytes) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(header.size() >> (8 * i) & 0xff);
  return bytes + header + std::string(data_bytes, '\x11');
}

inline std::filesystem::path tiny_world() { return source_folder() / "tests/data/tiny-world"; }

// ---------------------------------------------------------------------------------------------------------------------
// Models whose weights follow from the names of their tensors; tests/golden/make_logits.py has the
// same formula.

inline std::uint64_t fnv1a(std::string_view bytes) {
  std::uint64_t h = 0xcbf29ce484222325u;
  for (const char c : bytes) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return h;
}

inline std::uint64_t formula_hash(std::uint64_t name_hash, std::uint64_t index) {
  std::uint64_t z = name_hash + (index + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

inline std::vector<float> formula_weight(const std::string& name, std::size_t count) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) {
    const auto k = static_cast<float>(static_cast<int>(formula_hash(fnv1a(name), i) >> 56) - 128);
    values[i] = name.find("norm") != name.npos           ? 1 + std::floor(k / 2) / 128
                : name.find("embed_tokens") != name.npos ? k / 128
                                                         : k / 512;
  }
  return values;
}

inline std::vector<std::int32_t> formula_tokens(const std::string& model, std::size_t count,
                                                std::int64_t vocabulary) {
  std::vector<std::int32_t> tokens(count);
  for (std::size_t i = 0; i < count; ++i) {
    tokens[i] = static_cast<std::int32_t>(formula_hash(fnv1a(model + " tokens"), i) %
                                          static_cast<std::uint64_t>(vocabulary));
  }
  return tokens;
}

inline std::map<std::string, Shape> opt_tensor_shapes(const nlohmann::json& config) {
  const std::int64_t hidden = config.at("hidden_size"), ffn = config.at("ffn_dim");
  const std::int64_t width = config.value("word_embed_proj_dim", hidden);
  const std::int64_t vocabulary = config.at("vocab_size");
  const std::int64_t positions = config.at("max_position_embeddings");
  const std::string decoder = "model.decoder.";
  std::map<std::string, Shape> shapes = {
      {decoder + "embed_tokens.weight", {vocabulary, width}},
      {decoder + "embed_positions.weight", {positions + 2, hidden}}};
  if (width != hidden) {
    shapes[decoder + "project_in.weight"] = {hidden, width};
    shapes[decoder + "project_out.weight"] = {width, hidden};
  }
  if (!config.value("tie_word_embeddings", true)) shapes["lm_head.weight"] = {vocabulary, width};
  const auto add_norm = [&](const std::string& name) {
    if (!config.value("layer_norm_elementwise_affine", true)) return;
    for (const char* part : {".weight", ".bias"}) shapes[name + part] = {hidden};
  };
  const auto add_linear = [&](const std::string& name, std::int64_t rows, std::int64_t cols) {
    shapes[name + ".weight"] = {rows, cols};
    if (config.value("enable_bias", true)) shapes[name + ".bias"] = {rows};
  };
  if (config.value("do_layer_norm_before", true) &&
      !config.value("_remove_final_layer_norm", false)) {
    add_norm(decoder + "final_layer_norm");
  }
  for (int i = 0; i < config.at("num_hidden_layers").get<int>(); ++i) {
    const std::string block = decoder + "layers." + std::to_string(i) + ".";
    add_norm(block + "self_attn_layer_norm");
    add_norm(block + "final_layer_norm");
    for (const char* name : {"q", "k", "v", "out"}) {
      add_linear(block + "self_attn." + name + "_proj", hidden, hidden);
    }
    add_linear(block + "fc1", ffn, hidden);
    add_linear(block + "fc2", hidden, ffn);
  }
  return shapes;
}

inline std::map<std::string, Shape> tensor_shapes(const nlohmann::json& config) {
  if (config.at("model_type") == "opt") return opt_tensor_shapes(config);
  const std::int64_t hidden = config.at("hidden_size"), ffn = config.at("intermediate_size");
  const std::int64_t heads = config.at("num_attention_heads"), vocabulary = config.at("vocab_size");
  const std::int64_t kv_heads = config.value("num_key_value_heads", heads);
  const std::int64_t head_dim = config.value("head_dim", hidden / heads);
  std::map<std::string, Shape> shapes = {{"model.embed_tokens.weight", {vocabulary, hidden}},
                                         {"model.norm.weight", {hidden}}};
  if (!config.at("tie_word_embeddings").get<bool>())
    shapes["lm_head.weight"] = {vocabulary, hidden};
  const std::string kind = config.at("model_type");
  const std::int64_t q = heads * head_dim, kv = kv_heads * head_dim;
  const bool attention_bias = config.value("attention_bias", false);
  const bool mlp_bias = config.value("mlp_bias", false);
  for (int i = 0; i < config.at("num_hidden_layers").get<int>(); ++i) {
    const std::string block = "model.layers." + std::to_string(i) + ".";
    const auto add = [&](const std::string& name, std::int64_t rows, std::int64_t cols,
                         bool biased) {
      shapes[block + name + ".weight"] = {rows, cols};
      if (biased) shapes[block + name + ".bias"] = {rows};
    };
    const auto add_norm = [&](const std::string& name, std::int64_t size) {
      shapes[block + name + ".weight"] = {size};
    };
    const bool all_heads = kind == "olmo2", gemma = kind.starts_with("gemma");
    if (!all_heads) add_norm("input_layernorm", hidden);
    add_norm("post_attention_layernorm", hidden);
    if (gemma) add_norm("pre_feedforward_layernorm", hidden);
    if (gemma || all_heads) add_norm("post_feedforward_layernorm", hidden);
    if (kind == "qwen3" || kind == "gemma3_text" || all_heads) {
      add_norm("self_attn.q_norm", all_heads ? q : head_dim);
      add_norm("self_attn.k_norm", all_heads ? kv : head_dim);
    }
    if (kind == "phi3") {
      add("self_attn.qkv_proj", q + 2 * kv, hidden, false);
      add("mlp.gate_up_proj", 2 * ffn, hidden, false);
    } else {
      const bool qkv_bias = attention_bias || kind == "qwen2";
      add("self_attn.q_proj", q, hidden, qkv_bias);
      add("self_attn.k_proj", kv, hidden, qkv_bias);
      add("self_attn.v_proj", kv, hidden, qkv_bias);
      add("mlp.gate_proj", ffn, hidden, mlp_bias);
      add("mlp.up_proj", ffn, hidden, mlp_bias);
    }
    add("self_attn.o_proj", hidden, q, attention_bias);
    add("mlp.down_proj", hidden, ffn, mlp_bias);
  }
  return shapes;
}

// The tensors of a model directory, for tests to spoil before they are written.
using Tensors = std::map<std::string, HostTensor>;

inline Tensors formula_tensors(const nlohmann::json& config, DType type) {
  Tensors tensors;
  for (const auto& [name, shape] : tensor_shapes(config)) {
    HostTensor tensor(type, shape);
    const std::vector<float> values =
        formula_weight(name, static_cast<std::size_t>(tensor.count()));
    convert(DType::kF32, values.data(), type, tensor.bytes().data(), values.size());
    tensors.emplace(name, std::move(tensor));
  }
  return tensors;
}

inline void write_safetensors(const std::filesystem::path& path, const Tensors& tensors) {
  std::vector<TensorInfo> infos;
  for (const auto& [name, tensor] : tensors) infos.push_back({name, tensor.type(), tensor.shape()});
  SafetensorsWriter writer(path, infos, {{"format", "pt"}});
  for (const auto& [name, tensor] : tensors) writer.write(name, tensor.bytes());
  writer.close();
}

// config.json and the weights, in one file or dealt out to several with an index.
inline void write_model(const std::filesystem::path& directory, const nlohmann::json& config,
                        const Tensors& tensors, int shards = 1) {
  write_file(directory / "config.json", config.dump());
  if (shards == 1) {
    write_safetensors(directory / "model.safetensors", tensors);
    return;
  }
  std::vector<Tensors> parts(static_cast<std::size_t>(shards));
  nlohmann::json map;
  std::size_t i = 0;
  for (const auto& [name, tensor] : tensors) {
    const std::size_t part = i++ % parts.size();
    parts[part].emplace(name, tensor);
    map[name] = "model-" + std::to_string(part) + ".safetensors";
  }
  for (std::size_t part = 0; part < parts.size(); ++part) {
    write_safetensors(directory / ("model-" + std::to_string(part) + ".safetensors"), parts[part]);
  }
  write_file(directory / "model.safetensors.index.json",
             nlohmann::json{{"metadata", {}}, {"weight_map", map}}.dump());
}

inline nlohmann::json small_config() {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"hidden_size", 32},
          {"intermediate_size", 48},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 2},
          {"vocab_size", 40},
          {"max_position_embeddings", 64},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 10000.0},
          {"hidden_act", "silu"},
          {"tie_word_embeddings", false},
          {"torch_dtype", "float16"}};
}

// Of another architecture of the LLaMA kind, with `changes`.
inline nlohmann::json small_config(const std::string& model_type, const std::string& class_name,
                                   const nlohmann::json& changes = nlohmann::json::object()) {
  nlohmann::json config = small_config();
  config["model_type"] = model_type;
  config["architectures"] = nlohmann::json::array({class_name});
  config.update(changes);
  return config;
}

// One of each architecture of the LLaMA kind besides LLaMA and Mistral.
inline nlohmann::json small_config_of(const std::string& name) {
  if (name == "Qwen2") return small_config("qwen2", "Qwen2ForCausalLM");
  if (name == "Qwen3") return small_config("qwen3", "Qwen3ForCausalLM", {{"head_dim", 16}});
  if (name == "Phi3") {
    return small_config(
        "phi3", "Phi3ForCausalLM",
        {{"num_key_value_heads", 4}, {"partial_rotary_factor", 0.5}, {"pad_token_id", 0}});
  }
  if (name == "Olmo2") return small_config("olmo2", "Olmo2ForCausalLM", {{"pad_token_id", 0}});
  if (name == "Gemma2") {
    return small_config("gemma2", "Gemma2ForCausalLM",
                        {{"head_dim", 16},
                         {"query_pre_attn_scalar", 12},
                         {"sliding_window", 5},
                         {"attn_logit_softcapping", 2.0},
                         {"final_logit_softcapping", 3.0},
                         {"pad_token_id", 0}});
  }
  if (name == "Gemma3") {
    return small_config("gemma3_text", "Gemma3ForCausalLM",
                        {{"head_dim", 16},
                         {"query_pre_attn_scalar", 12},
                         {"sliding_window", 5},
                         {"sliding_window_pattern", 2},
                         {"rope_local_base_freq", 100.0},
                         {"pad_token_id", 0}});
  }
  return small_config("granite", "GraniteForCausalLM",
                      {{"attention_bias", true},
                       {"mlp_bias", true},
                       {"attention_multiplier", 0.25},
                       {"residual_multiplier", 0.5},
                       {"embedding_multiplier", 3.0},
                       {"logits_scaling", 2.0}});
}

inline nlohmann::json small_opt_config() {
  return {{"architectures", {"OPTForCausalLM"}},
          {"model_type", "opt"},
          {"hidden_size", 32},
          {"ffn_dim", 48},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 4},
          {"vocab_size", 40},
          {"max_position_embeddings", 64},
          {"activation_function", "relu"},
          {"do_layer_norm_before", true},
          {"word_embed_proj_dim", 32},
          {"_remove_final_layer_norm", false},
          {"bos_token_id", 2},
          {"eos_token_id", 2},
          {"torch_dtype", "float16"}};
}

}  // namespace roundhouse
