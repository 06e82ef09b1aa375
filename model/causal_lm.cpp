#include "model/causal_lm.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "model/llama_block.h"
#include "model/weights.h"

namespace roundhouse {
namespace {

constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kNorm = "model.norm.weight";

const char* head_of(const ModelConfig& config) {
  return config.tied_embeddings ? kEmbedding : "lm_head.weight";
}

}  // namespace

CausalLM::CausalLM(const std::filesystem::path& directory)
    : config_(read_model_config(directory)), checkpoint_(directory) {
  (void)checkpoint_.weight(kEmbedding, {config_.vocabulary, config_.hidden_size});
  for (int block = 0; block < config_.blocks; ++block)
    LlamaBlock::check(config_, checkpoint_, block);
  (void)checkpoint_.weight(kNorm, {config_.hidden_size});
  (void)checkpoint_.weight(head_of(config_), {config_.vocabulary, config_.hidden_size});
}

Tensor CausalLM::embed(std::span<const std::int32_t> ids, std::int64_t length,
                       Backend& backend) const {
  require(length > 0 && std::ssize(ids) % length == 0, "ids are not whole sequences");
  const HostView table = checkpoint_.weight(kEmbedding, {config_.vocabulary, config_.hidden_size});
  const std::size_t row_bytes = static_cast<std::size_t>(config_.hidden_size) * size_of(table.type);
  HostTensor rows(table.type, {static_cast<std::int64_t>(ids.size()), config_.hidden_size});
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= config_.vocabulary) {
      throw Error("token id " + std::to_string(ids[i]) + " is outside the vocabulary of " +
                  std::to_string(config_.vocabulary));
    }
    std::memcpy(rows.bytes().data() + i * row_bytes,
                table.bytes.data() + static_cast<std::size_t>(ids[i]) * row_bytes, row_bytes);
  }
  check_values(rows.view(), backend.activation_type(), kEmbedding);
  Tensor residual = Tensor::upload(backend, rows.view(), backend.activation_type());
  backend.sync();  // the rows end here
  return residual;
}

CausalLM::Head CausalLM::load_head(Backend& backend) const {
  Head head;
  head.norm = load_weight(checkpoint_, kNorm, {config_.hidden_size}, backend);
  head.weight = load_weight(checkpoint_, head_of(config_),
                            {config_.vocabulary, config_.hidden_size}, backend);
  backend.sync();
  return head;
}

Tensor CausalLM::logits(const Head& head, ConstMatrix residual, Backend& backend) const {
  Tensor normed(backend, backend.activation_type(), residual.rows, residual.cols);
  backend.rms_norm({.x = residual,
                    .weight = head.norm.view(),
                    .y = normed.view(),
                    .epsilon = config_.norm_epsilon});
  Tensor logits(backend, DType::kF32, residual.rows, config_.vocabulary);
  backend.linear(
      {.x = std::as_const(normed).view(), .w = head.weight.view(), .bias = {}, .y = logits.view()});
  return logits;
}

}  // namespace roundhouse
