#include "model/decoder_block.h"

#include "base/error.h"
#include "model/llama_block.h"
#include "model/opt_block.h"

namespace roundhouse {

void DecoderBlock::forward(const BlockWeights& weights, BlockState& state, Backend& backend) const {
  for (int group = 0; group < static_cast<int>(groups_.size()); ++group) {
    prepare(group, weights, state, backend);
    apply(group, weights, state, backend);
  }
}

std::unique_ptr<DecoderBlock> make_decoder_block(const ModelConfig& config, std::int64_t max_length,
                                                 Backend& backend) {
  switch (config.architecture) {
    case Architecture::kLlama:
    case Architecture::kMistral:
      return std::make_unique<LlamaBlock>(config, max_length, backend);
    case Architecture::kOpt:
      return std::make_unique<OptBlock>(config, max_length);
  }
  throw Error("this architecture has no decoder block");
}

}  // namespace roundhouse
