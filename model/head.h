// What stands between the last block and the logits: final norm, projection, head.
#pragma once

#include "kernels/backend.h"
#include "model/checkpoint/checkpoint.h"
#include "model/model_config.h"

namespace roundhouse {

// Loaded once by the caller (the head of a 70B model is 0.5 GB in 16 bits). Empty: the architecture has none.
struct Head {
  Tensor norm;
  Tensor norm_bias;    // with it a LayerNorm, without it an RMSNorm
  Tensor project_out;  // [embedding_size, hidden]
  Tensor weight;       // [vocabulary, embedding_size]
};

// All but the weight, which stays empty.
Head load_head_norm(const ModelConfig& config, const Checkpoint& checkpoint, Backend& backend);

// What the head's weight is applied to, and the tensors that hold it.
struct HeadInput {
  ConstMatrix x;
  Tensor normed, scaled, projected;
};
HeadInput head_input(const ModelConfig& config, const Head& head, ConstMatrix residual,
                     Backend& backend);

}  // namespace roundhouse
