#include "model/architectures/tensor_names.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <set>
#include <utility>

#include <fmt/format.h>

#include "base/error.h"
#include "base/file.h"
#include "base/json_file.h"
#include "base/process.h"
#include "model/checkpoint/load_weight.h"

namespace roundhouse {
namespace {

constexpr const char* kHead = "lm_head.weight";

BlockLayout llama_block(const ModelConfig& c) {
  const std::int64_t q = c.heads * c.head_dim;
  const std::int64_t kv = c.kv_heads * c.head_dim;
  BlockLayout block{.prefix = "model.layers.", .linears = {}, .norms = {}};
  const auto add = [&](const char* name, std::int64_t rows, std::int64_t cols, bool biased) {
    block.linears.push_back({name, rows, cols, biased});
  };
  if (c.fused_linears) {
    add("self_attn.qkv_proj", q + 2 * kv, c.hidden_size, c.qkv_bias);
  } else {
    add("self_attn.q_proj", q, c.hidden_size, c.qkv_bias);
    add("self_attn.k_proj", kv, c.hidden_size, c.qkv_bias);
    add("self_attn.v_proj", kv, c.hidden_size, c.qkv_bias);
  }
  add("self_attn.o_proj", c.hidden_size, q, c.output_bias);
  if (c.fused_linears) {
    add("mlp.gate_up_proj", 2 * c.intermediate_size, c.hidden_size, c.mlp_bias);
  } else {
    add("mlp.gate_proj", c.intermediate_size, c.hidden_size, c.mlp_bias);
    add("mlp.up_proj", c.intermediate_size, c.hidden_size, c.mlp_bias);
  }
  add("mlp.down_proj", c.hidden_size, c.intermediate_size, c.mlp_bias);

  const auto add_norm = [&](const char* name, std::int64_t size) {
    block.norms.push_back({name, size, c.norm_offset});
  };
  if (c.norms_of_inputs) add_norm("input_layernorm.weight", c.hidden_size);
  if (c.norms_of_outputs) add_norm("post_attention_layernorm.weight", c.hidden_size);
  if (c.norms_of_inputs) {
    add_norm(
        c.norms_of_outputs ? "pre_feedforward_layernorm.weight" : "post_attention_layernorm.weight",
        c.hidden_size);
  }
  if (c.norms_of_outputs) add_norm("post_feedforward_layernorm.weight", c.hidden_size);
  if (c.query_key_norm != QueryKeyNorm::kNone) {
    const bool all = c.query_key_norm == QueryKeyNorm::kAll;
    add_norm("self_attn.q_norm.weight", all ? q : c.head_dim);
    add_norm("self_attn.k_norm.weight", all ? kv : c.head_dim);
  }
  return block;
}

OuterLayout llama_outer(const ModelConfig& c) {
  OuterLayout outer;
  outer.embedding = "model.embed_tokens.weight";
  outer.norm = "model.norm.weight";
  outer.head = c.tied_embeddings ? outer.embedding : kHead;
  return outer;
}

BlockLayout opt_block(const ModelConfig& c) {
  BlockLayout block{.prefix = "model.decoder.layers.",
                    .linears = {{"self_attn.q_proj", c.hidden_size, c.hidden_size, c.qkv_bias},
                                {"self_attn.k_proj", c.hidden_size, c.hidden_size, c.qkv_bias},
                                {"self_attn.v_proj", c.hidden_size, c.hidden_size, c.qkv_bias},
                                {"self_attn.out_proj", c.hidden_size, c.hidden_size, c.output_bias},
                                {"fc1", c.intermediate_size, c.hidden_size, c.mlp_bias},
                                {"fc2", c.hidden_size, c.intermediate_size, c.mlp_bias}},
                    .norms = {}};
  if (c.affine_norms) {
    for (const char* name : {"self_attn_layer_norm.weight", "self_attn_layer_norm.bias",
                             "final_layer_norm.weight", "final_layer_norm.bias"}) {
      block.norms.push_back({name, c.hidden_size});
    }
  }
  return block;
}

OuterLayout opt_outer(const ModelConfig& c) {
  OuterLayout outer;
  outer.embedding = "model.decoder.embed_tokens.weight";
  outer.positions = "model.decoder.embed_positions.weight";
  outer.position_offset = 2;
  if (c.embedding_size != c.hidden_size) {
    outer.project_in = "model.decoder.project_in.weight";
    outer.project_out = "model.decoder.project_out.weight";
  }
  if (c.final_norm && c.affine_norms) {
    outer.norm = "model.decoder.final_layer_norm.weight";
    outer.norm_bias = "model.decoder.final_layer_norm.bias";
  }
  outer.head = c.tied_embeddings ? outer.embedding : kHead;
  return outer;
}

std::string block_prefix(const BlockLayout& layout, std::int64_t block) {
  return fmt::format("{}{}.", layout.prefix, block);
}

// "model.norm" of "model.norm.weight".
std::string module_of(const std::string& tensor) { return tensor.substr(0, tensor.rfind('.')); }

// The number of the block that a tensor's name puts it in.
std::optional<std::int64_t> block_of(const BlockLayout& layout, const std::string& tensor) {
  if (!tensor.starts_with(layout.prefix)) return std::nullopt;
  std::int64_t block = 0;
  const char* const begin = tensor.data() + layout.prefix.size();
  const char* const end = tensor.data() + tensor.size();
  const auto [after, status] = std::from_chars(begin, end, block);
  if (status != std::errc() || after == end || *after != '.') return std::nullopt;
  return block;
}

// A head of its own beside `tie_word_embeddings`: the same values are the same model, others are a contradiction that
// readers settle differently.
void check_tied_head(const OuterLayout& outer, const Checkpoint& checkpoint) {
  const HostView head = checkpoint.view(kHead), embedding = checkpoint.view(outer.embedding);
  if (head.type == embedding.type && head.shape == embedding.shape &&
      std::ranges::equal(head.bytes, embedding.bytes)) {
    return;
  }
  throw InputError(checkpoint.directory().string() +
                   ": config.json ties the head to the embedding (tie_word_embeddings), but " +
                   in_quotes(kHead) + " differs from " + in_quotes(outer.embedding) +
                   ": set tie_word_embeddings to false if it is to be used, or take it out");
}

// A tensor smaller than a page cannot be given back by itself, and reading it maps the pages around it as well, which are
// its neighbours'.
void release_pages(const std::vector<TensorInfo>& tensors, const Checkpoint& checkpoint) {
  for (const TensorInfo& tensor : tensors) release_mapped_pages(checkpoint.view(tensor.name).bytes);
}

// Collects those that have a name.
class Collector {
 public:
  explicit Collector(DType type) : type_(type) {}
  void add(const std::string& name, Shape shape) {
    if (!name.empty()) tensors.push_back({name, type_, std::move(shape)});
  }
  std::vector<TensorInfo> tensors;

 private:
  DType type_;
};

}  // namespace

BlockLayout block_layout(const ModelConfig& config) {
  return config.architecture == Architecture::kOpt ? opt_block(config) : llama_block(config);
}

OuterLayout outer_layout(const ModelConfig& config) {
  return config.architecture == Architecture::kOpt ? opt_outer(config) : llama_outer(config);
}

std::vector<TensorInfo> tensors_before_blocks(const ModelConfig& c) {
  const OuterLayout outer = outer_layout(c);
  Collector collector(c.dtype);
  collector.add(outer.embedding, {c.vocabulary, c.embedding_size});
  collector.add(outer.project_in, {c.hidden_size, c.embedding_size});
  collector.add(outer.positions, {outer.position_offset + c.max_positions, c.hidden_size});
  return collector.tensors;
}

std::vector<TensorInfo> tensors_of_block(const ModelConfig& c, std::int64_t block) {
  const BlockLayout layout = block_layout(c);
  const std::string prefix = block_prefix(layout, block);
  Collector collector(c.dtype);
  for (const LinearSpec& linear : layout.linears) {
    collector.add(prefix + linear.name + ".weight", {linear.rows, linear.cols});
    if (linear.biased) collector.add(prefix + linear.name + ".bias", {linear.rows});
  }
  for (const NormSpec& norm : layout.norms) collector.add(prefix + norm.name, {norm.size});
  return collector.tensors;
}

std::vector<TensorInfo> tensors_after_blocks(const ModelConfig& c) {
  const OuterLayout outer = outer_layout(c);
  Collector collector(c.dtype);
  collector.add(outer.norm, {c.hidden_size});
  collector.add(outer.norm_bias, {c.hidden_size});
  collector.add(outer.project_out, {c.embedding_size, c.hidden_size});
  if (outer.head != outer.embedding) {
    collector.add(outer.head, {c.vocabulary, c.embedding_size});
  }
  return collector.tensors;
}

std::int64_t element_count(const std::vector<TensorInfo>& tensors) {
  std::int64_t count = 0;
  for (const TensorInfo& tensor : tensors) count += element_count(tensor.shape);
  return count;
}

std::vector<std::string> check_tensors(const ModelConfig& config, const Checkpoint& checkpoint) {
  std::set<std::string> read, modules;  // tensors, and what they are parameters of
  const auto check = [&](const std::vector<TensorInfo>& tensors) {
    for (const TensorInfo& tensor : tensors) {
      (void)checkpoint.weight(tensor.name, tensor.shape);
      read.insert(tensor.name);
      modules.insert(module_of(tensor.name));
    }
  };
  check(tensors_before_blocks(config));
  const BlockLayout layout = block_layout(config);
  for (std::int64_t block = 0; block < config.blocks; ++block) {
    check(tensors_of_block(config, block));
  }
  check(tensors_after_blocks(config));

  // What stands beside a tensor that is read, or in a block that is computed, would change the result.
  const auto would_count = [&](const std::string& name) {
    if (modules.contains(module_of(name))) return true;
    const std::optional<std::int64_t> block = block_of(layout, name);
    return block && *block < config.blocks;
  };
  std::vector<std::string> unread, counting;
  for (const std::string& name : checkpoint.names()) {
    if (read.contains(name)) continue;
    if (name == kHead) {
      check_tied_head(outer_layout(config), checkpoint);
      continue;
    }
    (would_count(name) ? counting : unread).push_back(name);
  }
  if (!counting.empty()) {
    throw InputError(checkpoint.directory().string() + ": tensors " + in_quotes(counting) +
                     ": not supported here: config.json describes a model without them, and "
                     "leaving them out would make it another one");
  }
  return unread;
}

void check_unquantized_values(const ModelConfig& config, const Checkpoint& checkpoint, DType type) {
  const auto check = [&](const TensorInfo& tensor) {
    const HostView view = checkpoint.weight(tensor.name, tensor.shape);
    check_values(view, type, checkpoint.where(tensor.name));
    release_mapped_pages(view.bytes);
  };
  std::ranges::for_each(tensors_before_blocks(config), check);
  std::ranges::for_each(tensors_after_blocks(config), check);
  for (std::int64_t block = 0; block < config.blocks; ++block) {
    const std::vector<TensorInfo> tensors = tensors_of_block(config, block);
    for (const TensorInfo& tensor : tensors) {
      if (tensor.shape.size() == 1) check(tensor);  // a norm or a bias
    }
    release_pages(tensors, checkpoint);
  }
}

BlockWeights load_block(const ModelConfig& config, const Checkpoint& checkpoint, int block,
                        Backend& backend, LoadLinears linears) {
  give_back_free_memory();  // of the block before
  const BlockLayout layout = block_layout(config);
  const std::string prefix = block_prefix(layout, block);
  BlockWeights weights;
  weights.block = block;
  weights.linears.resize(layout.linears.size());
  weights.biases.resize(layout.linears.size());
  for (std::size_t i = 0; i < layout.linears.size(); ++i) {
    const LinearSpec& linear = layout.linears[i];
    if (linears == LoadLinears::kYes) {
      weights.linears[i] = load_weight(checkpoint, prefix + linear.name + ".weight",
                                       {linear.rows, linear.cols}, backend);
    }
    if (linear.biased) {
      weights.biases[i] =
          load_weight(checkpoint, prefix + linear.name + ".bias", {linear.rows}, backend);
    }
  }
  for (const NormSpec& norm : layout.norms) {
    weights.norms.push_back(load_weight(checkpoint, prefix + norm.name, {norm.size}, backend));
  }
  backend.sync();
  release_pages(tensors_of_block(config, block), checkpoint);
  return weights;
}

}  // namespace roundhouse
