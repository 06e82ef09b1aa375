// A whole model, one piece at a time: embedding, blocks (decoder_block.h), final norm and head. Holds no weights but those
// that the caller asks for, so that a rank never has more than one block in memory.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "model/architectures/tensor_names.h"
#include "model/block/decoder_block.h"
#include "model/checkpoint/checkpoint.h"
#include "model/head.h"
#include "model/model_config.h"

namespace roundhouse {

class CausalLM {
 public:
  // Reads the config and the headers of the weights, and checks that every tensor is there with the right shape. Throws
  // InputError before any work is done.
  explicit CausalLM(const std::filesystem::path& directory);

  const ModelConfig& config() const { return config_; }
  const Checkpoint& checkpoint() const { return checkpoint_; }
  // Tensors of the checkpoint that are no part of the model: not read, not exported.
  const std::vector<std::string>& unread() const { return unread_; }

  // residual [ids.size(), hidden] of sequences of `length` tokens, one after another; learned positions (OPT) are in it.
  // An id outside the vocabulary is an Error, and so are more tokens than there are positions. `rows`: the embedding of an id, in
  // place of the checkpoint's.
  using EmbeddingRows = std::function<std::span<const float>(std::int64_t id)>;
  Tensor embed(std::span<const std::int32_t> ids, std::int64_t length, Backend& backend,
               const EmbeddingRows& rows = {}) const;

  using Head = roundhouse::Head;
  Head load_head(Backend& backend) const;
  Tensor logits(const Head& head, ConstMatrix residual,
                Backend& backend) const;  // [rows, vocabulary] F32

  // The mean cross-entropy of one sequence, in nats: its tokens but the first are each predicted from those before. And its
  // gradient dL/d residual [tokens, hidden], in the activation type. Logits are computed for a range of the vocabulary at a
  // time, twice unless one range is all: no more than `logit_bytes` of them are alive (in F32, and once more in the activation
  // type where that is another).
  struct LossGradient {
    double loss;
    Tensor residual;
  };
  static constexpr std::size_t kLogitBytes = std::size_t{256} << 20;
  LossGradient loss_gradient(const Head& head, ConstMatrix residual,
                             std::span<const std::int32_t> ids, Backend& backend,
                             std::size_t logit_bytes = kLogitBytes) const;

 private:
  void cap(Matrix logits, Backend& backend) const;

  ModelConfig config_;
  OuterLayout layout_;
  Checkpoint checkpoint_;
  std::vector<std::string> unread_;
};

}  // namespace roundhouse
