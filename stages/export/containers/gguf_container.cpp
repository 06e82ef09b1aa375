#include "stages/export/containers/gguf_container.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <utility>

#include <fmt/format.h>

#include "base/json_file.h"
#include "model/rope.h"
#include "stages/export/formats/gguf_blocks.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

using Name = std::pair<std::string_view, std::string_view>;  // ours, theirs

constexpr std::array kOuter = {Name{"model.embed_tokens.weight", "token_embd.weight"},
                               Name{"model.norm.weight", "output_norm.weight"},
                               Name{"lm_head.weight", "output.weight"}};
constexpr std::array kInBlock = {Name{"input_layernorm.weight", "attn_norm.weight"},
                                 Name{"post_attention_layernorm.weight", "ffn_norm.weight"},
                                 Name{"self_attn.q_proj.weight", "attn_q.weight"},
                                 Name{"self_attn.k_proj.weight", "attn_k.weight"},
                                 Name{"self_attn.v_proj.weight", "attn_v.weight"},
                                 Name{"self_attn.o_proj.weight", "attn_output.weight"},
                                 Name{"mlp.gate_proj.weight", "ffn_gate.weight"},
                                 Name{"mlp.up_proj.weight", "ffn_up.weight"},
                                 Name{"mlp.down_proj.weight", "ffn_down.weight"}};

std::string their_name(const std::string& name) {
  constexpr std::string_view kBlocks = "model.layers.";
  std::string_view rest = name;
  std::string prefix;
  std::span<const Name> known = kOuter;
  if (rest.starts_with(kBlocks)) {
    rest.remove_prefix(kBlocks.size());
    const std::size_t dot = rest.find('.');
    prefix = "blk." + std::string(rest.substr(0, dot)) + ".";
    rest.remove_prefix(std::min(rest.size(), dot + 1));
    known = kInBlock;
  }
  const auto found = std::ranges::find(known, rest, &Name::first);
  if (found != known.end()) return prefix + std::string(found->second);
  throw InputError("tensor " + in_quotes(name) +
                   ": GGUF's architecture \"llama\" has no place for it; use another format");
}

// What general.file_type says of files most of whose tensors are of this type.
std::uint32_t file_type(GgmlType type) {
  switch (type) {
    case GgmlType::kQ4_0:
      return 2;
    case GgmlType::kQ5_0:
      return 8;
    case GgmlType::kQ8_0:
      return 7;
    case GgmlType::kQ2_K:
      return 10;
    case GgmlType::kQ3_K:
      return 11;
    case GgmlType::kQ4_K:
      return 14;
    default:
      return 1024;  // "guessed"
  }
}

GgmlType float_type(DType type) {
  return type == DType::kF32   ? GgmlType::kF32
         : type == DType::kF16 ? GgmlType::kF16
                               : GgmlType::kBF16;
}

// Keys of config.json that would make another model of it than those which GGUF gets.
void check_config(const fs::path& directory) {
  const fs::path file = directory / "config.json";
  const nlohmann::json config = read_json_file(file, std::size_t{1} << 24);
  const auto refuse = [&](const std::string& key, const nlohmann::json& value) {
    throw InputError(file.string() + ": " + key + ": " + printable(value.dump(), 200) +
                     " cannot be exported as gguf: use another format");
  };
  const nlohmann::json names = config.value("architectures", nlohmann::json());
  const nlohmann::json type = config.value("model_type", nlohmann::json());
  const bool named = names.is_array() && !names.empty();
  if (named && names[0] != "LlamaForCausalLM" && names[0] != "MistralForCausalLM")
    refuse("architectures", names);
  if (!named && type != "llama" && type != "mistral") refuse("model_type", type);
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const nlohmann::json rope = config.value(key, nlohmann::json());
    if (!rope.is_object()) continue;
    const nlohmann::json kind =
        rope.value("rope_type", rope.value("type", nlohmann::json("default")));
    if (kind != "default" && kind != "linear" && kind != "yarn" && kind != "llama3")
      refuse(key + std::string(".rope_type"), kind);
  }
}

class GgufContainer final : public Container {
 public:
  explicit GgufContainer(const ExportedModel& exported)
      : config_(exported.model.config()),
        directory_(exported.model.checkpoint().directory()),
        recipe_(exported.recipe.name) {
    check_config(directory_);
    for (const ExportedLinear& linear : exported.linears) {
      const GgmlType type = block_type_for(linear.scheme, linear.spec.cols).value();
      linears_[their_name(linear.module + ".weight")] = {
          .name = {}, .type = type, .shape = {linear.spec.rows, linear.spec.cols}};
      ++count_of_[type];
    }
  }

  std::string ending() const override { return ".gguf"; }
  TensorInfo of_linear(const ExportedLinear& linear, TensorInfo part) const override {
    part.name = their_name(linear.module + "." + part.name);
    return part;
  }
  // llama.cpp multiplies with norms in float32.
  TensorInfo kept(TensorInfo tensor) const override {
    tensor.name = their_name(tensor.name);
    if (tensor.shape.size() == 1) tensor.type = DType::kF32;
    return tensor;
  }
  // What the frequencies of pairs are divided by.
  std::vector<Own> own_tensors() const override {
    std::vector<Own> own;
    if (config_.rope.scaling != RopeConfig::Scaling::kLlama3) return own;
    RopeConfig plain = config_.rope;
    plain.scaling = RopeConfig::Scaling::kNone;
    const std::vector<double> from = rotary_frequencies(plain, config_.max_positions);
    const std::vector<double> to = rotary_frequencies(config_.rope, config_.max_positions);
    HostTensor factors(DType::kF32, {static_cast<std::int64_t>(from.size())});
    for (std::size_t j = 0; j < from.size(); ++j)
      factors.as<float>()[j] = static_cast<float>(from[j] / to[j]);
    own.push_back({"rope_freqs.weight", std::move(factors)});
    return own;
  }
  // It turns neighbouring rows of a head together, Hugging Face row i and row i + half a head.
  std::vector<std::int64_t> row_order(const ExportedLinear& linear) const override {
    if (linear.spec.name != "self_attn.q_proj" && linear.spec.name != "self_attn.k_proj") return {};
    const std::int64_t size = config_.head_dim, half = size / 2;
    std::vector<std::int64_t> order(static_cast<std::size_t>(linear.spec.rows));
    for (std::int64_t row = 0; row < linear.spec.rows; ++row) {
      const std::int64_t within = row % size;
      order[row] = row - within + within % 2 * half + within / 2;
    }
    return order;
  }

  std::unique_ptr<TensorWriter> create(const fs::path& path, const std::vector<ExportedFile>& files,
                                       std::size_t index) const override {
    return std::make_unique<GgufWriter>(path, keys(files, index), tensors(files[index]));
  }
  std::unique_ptr<TensorFile> open(const fs::path& path, const std::vector<ExportedFile>& files,
                                   std::size_t index) const override {
    auto file = std::make_unique<GgufFile>(path);
    if (file->header() != gguf_header(keys(files, index), tensors(files[index]))) {
      throw Error(path.string() +
                  ": its keys or its list of tensors are not what this model's have to be");
    }
    return file;
  }

  std::vector<Text> texts(const std::vector<ExportedFile>&, DType) const override { return {}; }
  nlohmann::json essence(const Text&) const override { return {}; }

  // All keys, of the first file of several.
  void add_keys(GgufKeys& keys) const {
    const auto count = [](std::int64_t value) { return static_cast<std::uint32_t>(value); };
    keys.add("general.architecture", std::string_view("llama"));
    keys.add("general.type", std::string_view("model"));
    keys.add("general.name", std::string_view(recipe_));
    const auto most =
        std::ranges::max_element(count_of_, {}, [](const auto& each) { return each.second; });
    keys.add("general.file_type",
             file_type(most == count_of_.end() ? GgmlType::kF32 : most->first));
    keys.add("general.quantization_version", std::uint32_t{2});
    keys.add("llama.vocab_size", count(config_.vocabulary));
    keys.add("llama.context_length", count(config_.max_positions));
    keys.add("llama.embedding_length", count(config_.hidden_size));
    keys.add("llama.block_count", count(config_.blocks));
    keys.add("llama.feed_forward_length", count(config_.intermediate_size));
    keys.add("llama.attention.head_count", count(config_.heads));
    keys.add("llama.attention.head_count_kv", count(config_.kv_heads));
    keys.add("llama.attention.key_length", count(config_.head_dim));
    keys.add("llama.attention.value_length", count(config_.head_dim));
    keys.add("llama.attention.layer_norm_rms_epsilon", config_.norm_epsilon);
    keys.add("llama.rope.dimension_count", count(config_.head_dim));
    keys.add("llama.rope.freq_base", static_cast<float>(config_.rope.theta));
    add_rope_scaling(keys);
    add_tokenizer_keys(directory_, config_.vocabulary, keys);
  }

 private:
  void add_rope_scaling(GgufKeys& keys) const {
    const RopeConfig& rope = config_.rope;
    const bool yarn = rope.scaling == RopeConfig::Scaling::kYarn;
    if (!yarn && rope.scaling != RopeConfig::Scaling::kLinear) return;
    keys.add("llama.rope.scaling.type", std::string_view(yarn ? "yarn" : "linear"));
    keys.add("llama.rope.scaling.factor", static_cast<float>(rope.factor));
    if (!yarn) return;
    keys.add("llama.rope.scaling.original_context_length",
             static_cast<std::uint32_t>(rope.original_positions));
  }

  GgufKeys keys(const std::vector<ExportedFile>& files, std::size_t index) const {
    GgufKeys keys;
    if (index == 0) add_keys(keys);
    if (files.size() > 1) {
      std::size_t tensors = 0;
      for (const ExportedFile& file : files) tensors += file.tensors.size();
      keys.add("split.no", static_cast<std::uint16_t>(index));
      keys.add("split.count", static_cast<std::uint16_t>(files.size()));
      keys.add("split.tensors.count", static_cast<std::int32_t>(tensors));
    }
    return keys;
  }

  std::vector<GgufTensor> tensors(const ExportedFile& file) const {
    std::vector<GgufTensor> tensors;
    for (const TensorInfo& info : file.tensors) {
      const auto linear = linears_.find(info.name);
      GgufTensor tensor = linear != linears_.end()
                              ? linear->second
                              : GgufTensor{{}, float_type(info.type), info.shape};
      tensor.name = info.name;
      tensors.push_back(std::move(tensor));
    }
    return tensors;
  }

  const ModelConfig& config_;
  fs::path directory_;
  std::string recipe_;
  std::map<std::string, GgufTensor> linears_;  // by their names in the file
  std::map<GgmlType, int> count_of_;
};

}  // namespace

std::unique_ptr<Container> make_gguf_container(const ExportedModel& exported) {
  return std::make_unique<GgufContainer>(exported);
}

namespace {

// What the architecture "llama" of llama.cpp has no key for, or what is not written yet; "": nothing.
std::string beyond_llama(const ModelConfig& config) {
  const RopeConfig& rope = config.rope;
  if (config.fused_linears) return "linears that are fused (Phi-3)";
  if (config.norms_of_outputs) return "norms of what attention and MLP add (OLMo 2)";
  if (config.query_key_norm != QueryKeyNorm::kNone) return "norms of queries and keys";
  if (config.qkv_bias || config.output_bias || config.mlp_bias) return "linears with biases";
  if (config.attention_scale != 0 || config.residual_multiplier != 1 ||
      config.embedding_multiplier != 1 || config.logits_divisor != 1)
    return "multipliers of its own (Granite)";
  if (rope.scaling == RopeConfig::Scaling::kLongRope) return "a rotation of kind longrope";
  // llama.cpp takes these as they usually are.
  if (rope.scaling == RopeConfig::Scaling::kYarn &&
      (rope.beta_fast != 32.0 || rope.beta_slow != 1.0 || !rope.ramp_of_whole_pairs ||
       std::abs(rope.magnitude - (1.0 + 0.1 * std::log(rope.factor))) > 1e-6))
    return "a rotation of kind yarn with settings of its own";
  if (rope.columns != config.head_dim) return "a rotation of part of each head";
  return "";
}

}  // namespace

void check_gguf_model(const ExportedModel& exported) {
  const GgufContainer container(exported);
  const ModelConfig& config = exported.model.config();
  if (config.architecture == Architecture::kLlama) {
    if (const std::string what = beyond_llama(config); !what.empty()) {
      throw InputError(exported.model.checkpoint().directory().string() + ": the model has " +
                       what + ", which the format 'gguf' does not write; use another format");
    }
  }
  for (const auto& tensors :
       {tensors_before_blocks(config), tensors_of_block(config, 0), tensors_after_blocks(config)}) {
    for (const TensorInfo& tensor : tensors) their_name(tensor.name);
  }
  GgufKeys keys;
  container.add_keys(keys);
}

}  // namespace roundhouse
