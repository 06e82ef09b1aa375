// The model that methods quantize on emulated GPUs: small, but with linears of up to four tiles of rows, and of seven panels of columns.
#pragma once

#include "model/synthetic.h"

namespace roundhouse {

inline ModelConfig small_shape() {
  ModelConfig config = shape_like("tiny-world");
  config.hidden_size = config.embedding_size = 64;
  config.intermediate_size = 832;
  config.heads = config.kv_heads = 2;
  config.head_dim = 32;
  config.blocks = 1;
  return config;
}

}  // namespace roundhouse
