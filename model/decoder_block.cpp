#include "model/decoder_block.h"

#include <utility>

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

SavedActivations DecoderBlock::forward_saving(const BlockWeights& weights, BlockState& state,
                                              Save save, Backend& backend) const {
  SavedActivations saved{
      .input = Tensor(backend, state.residual.type(), state.residual.rows(), state.residual.cols()),
      .inner = {},
      .sequences = state.sequences,
      .length = state.length};
  backend.copy(std::as_const(state.residual).view(), saved.input.view());
  if (save == Save::kAll) {
    forward_saving_all(weights, state, saved, backend);
  } else {
    forward(weights, state, backend);
  }
  return saved;
}

Tensor DecoderBlock::backward(const BlockWeights& weights, SavedActivations saved, Tensor dy,
                              const TakeGradient& take, InputGradient input_gradient,
                              Backend& backend) const {
  require(dy.rows() == saved.input.rows() && dy.cols() == hidden_size_,
          "the gradient of a block's output has another shape");
  if (saved.inner.empty()) {
    BlockState again{.residual = std::move(saved.input),
                     .input = {},
                     .sequences = saved.sequences,
                     .length = saved.length};
    saved = forward_saving(weights, again, Save::kAll, backend);
  }
  return backward_from_all(weights, std::move(saved), std::move(dy), take, input_gradient, backend);
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
