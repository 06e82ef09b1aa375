#include "model/block/decoder_block.h"

#include <utility>

#include <fmt/format.h>

#include "base/error.h"
#include "model/architectures/llama_block.h"
#include "model/architectures/opt_block.h"
#include "model/architectures/outer_block.h"

namespace roundhouse {
namespace {

Tensor copy_of(const Tensor& from, Backend& backend) {
  Tensor to(backend, from.type(), from.rows(), from.cols());
  backend.copy(from.view(), to.view());
  return to;
}

}  // namespace

BlockWeights BlockWeights::borrowed() const {
  BlockWeights weights;
  weights.block = block;
  for (const Tensor& tensor : linears) weights.linears.push_back(tensor.borrowed());
  for (const Tensor& tensor : biases) weights.biases.push_back(tensor.borrowed());
  for (const Tensor& tensor : norms) weights.norms.push_back(tensor.borrowed());
  return weights;
}

void DecoderBlock::forward(const BlockWeights& weights, BlockState& state, Backend& backend) const {
  for (int group = 0; group < static_cast<int>(shared_inputs_.size()); ++group) {
    prepare(group, weights, state, backend);
    apply(group, weights, state, backend);
  }
}

std::size_t SavedActivations::bytes() const {
  std::size_t sum = 0;
  for (const OfHalf* half : {&attention, &mlp}) {
    sum += half->input.bytes();
    for (const Tensor& tensor : half->inner) sum += tensor.bytes();
  }
  return sum;
}

std::size_t DecoderBlock::saved_bytes(std::int64_t tokens, DType activation_type) const {
  return static_cast<std::size_t>(tokens) *
         (static_cast<std::size_t>(saved_width_) * size_of(activation_type) +
          static_cast<std::size_t>(saved_f32_width_) * sizeof(float));
}

void DecoderBlock::prepare(int group, const BlockWeights& weights, BlockState& state,
                           Backend& backend) const {
  require(group >= 0 && group < static_cast<int>(shared_inputs_.size()),
          "no such group of linears");
  require(state.residual.rows() == state.sequences * state.length,
          "rows are sequences times length");
  const SharedInput& here = shared_inputs_[group];
  if (here.from_residual) {
    state.input = input_from_residual(group, weights, state.residual, backend);
  } else {
    require(!state.input.empty() && state.input.cols() == here.cols,
            "the input of this group is what apply() of the group before leaves");
  }
}

SavedActivations DecoderBlock::forward_saving(const BlockWeights& weights, BlockState& state,
                                              Save save, Backend& backend) const {
  require(state.residual.rows() == state.sequences * state.length,
          "rows are sequences times length");
  SavedActivations saved;
  saved.length = state.length;
  const auto pass = [&](Half half, SavedActivations::OfHalf& of_half) {
    of_half.input = copy_of(state.residual, backend);
    std::vector<Tensor> inner = forward_half(half, weights, state.residual, state.length, backend);
    if (save == Save::kAll) of_half.inner = std::move(inner);
  };
  pass(Half::kAttention, saved.attention);
  pass(Half::kMlp, saved.mlp);
  return saved;
}

Tensor DecoderBlock::backward(const BlockWeights& weights, SavedActivations saved, Tensor dy,
                              const TakeGradient& take, InputGradient input_gradient,
                              Backend& backend) const {
  require(dy.rows() == saved.attention.input.rows() && dy.cols() == hidden_size_,
          "the gradient of a block's output has another shape");
  const auto pass = [&](Half half, SavedActivations::OfHalf of_half, InputGradient wanted) {
    if (of_half.inner.empty()) {
      Tensor again = copy_of(of_half.input, backend);
      of_half.inner = forward_half(half, weights, again, saved.length, backend);
    }
    backward_half(half, weights, of_half, saved.length, dy, take, wanted, backend);
  };
  pass(Half::kMlp, std::move(saved.mlp), InputGradient::kYes);
  pass(Half::kAttention, std::move(saved.attention), input_gradient);
  return input_gradient == InputGradient::kYes ? std::move(dy) : Tensor();
}

std::string DecoderBlock::prefix(int block) const { return fmt::format("{}{}", prefix_, block); }

std::string DecoderBlock::module(int block, std::size_t linear) const {
  const std::string& name = linears_[linear].name;
  return prefix_.empty() ? name : fmt::format("{}{}.{}", prefix_, block, name);
}

std::unique_ptr<DecoderBlock> DecoderBlock::outer(const std::vector<std::string>& include) const {
  require(model_.has_value(), "a block that knows of no model has nothing outside of it");
  return std::make_unique<OuterBlock>(*model_, include);
}

std::unique_ptr<DecoderBlock> make_decoder_block(const ModelConfig& config, std::int64_t max_length,
                                                 Backend& backend) {
  std::unique_ptr<DecoderBlock> block;
  if (config.architecture == Architecture::kOpt) {
    block = std::make_unique<OptBlock>(config, max_length);
  } else {
    block = std::make_unique<LlamaBlock>(config, max_length, backend);
  }
  block->model_ = config;
  return block;
}

}  // namespace roundhouse
