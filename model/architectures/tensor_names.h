// The tensors of a checkpoint, by architecture: their names and shapes, and which of them are the linears of a block.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/block/decoder_block.h"
#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/safetensors.h"
#include "model/model_config.h"

namespace roundhouse {

struct BlockLayout {
  std::string prefix;  // of all its tensors, before the block's number: "model.layers."
  std::vector<LinearSpec> linears;
  std::vector<NormSpec> norms;
};

// Names outside the blocks, in the order in which data flows. Empty: the architecture has no such tensor.
struct OuterLayout {
  std::string embedding;   // [vocabulary, embedding_size]
  std::string project_in;  // [hidden, embedding_size]
  std::string positions;   // [position_offset + max_positions, hidden]
  std::int64_t position_offset = 0;
  std::string norm;         // [hidden]
  std::string norm_bias;    // [hidden]
  std::string project_out;  // [embedding_size, hidden]
  std::string head;         // [vocabulary, embedding_size]; the embedding if they are tied
};

BlockLayout block_layout(const ModelConfig& config);
OuterLayout outer_layout(const ModelConfig& config);

// Every tensor, its type that of the config, in the order in which data flows. A tied head is not there twice.
std::vector<TensorInfo> tensors_before_blocks(const ModelConfig& config);
std::vector<TensorInfo> tensors_of_block(const ModelConfig& config, std::int64_t block);
std::vector<TensorInfo> tensors_after_blocks(const ModelConfig& config);
// Of all these together.
std::int64_t element_count(const std::vector<TensorInfo>& tensors);

// Throws InputError naming the tensor unless all are in the checkpoint with their shapes, and nothing is there that would make
// another model of it: a bias or norm that the architecture does not have, a tied head that differs from the embedding. Returns
// the names of the other tensors that nobody reads: spare layers, heads for other tasks. Reads no values but those of a tied head.
std::vector<std::string> check_tensors(const ModelConfig& config, const Checkpoint& checkpoint);

// check_values() of all that is not quantized: embedding, positions, head, norms, biases. Reads them whole. The
// linears' weights, which are most of a model, are checked as each block is loaded.
void check_unquantized_values(const ModelConfig& config, const Checkpoint& checkpoint, DType type);

// The weights of one block; see DecoderBlock::load().
BlockWeights load_block(const ModelConfig& config, const Checkpoint& checkpoint, int block,
                        Backend& backend, LoadLinears linears);

}  // namespace roundhouse
