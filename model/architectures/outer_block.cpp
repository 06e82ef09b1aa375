#include "model/architectures/outer_block.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "model/architectures/tensor_names.h"
#include "model/checkpoint/load_weight.h"
#include "model/head.h"

namespace roundhouse {
namespace {

constexpr const char* kNoFlow = "no activations go through what stands outside the blocks";

std::string module_of(const std::string& tensor) { return tensor.substr(0, tensor.rfind('.')); }

Tensor copy_of(ConstMatrix from, Backend& backend) {
  Tensor to(backend, backend.activation_type(), from.rows, from.cols);
  backend.copy(from, to.view());
  return to;
}

}  // namespace

OuterBlock::OuterBlock(const ModelConfig& config, const std::vector<std::string>& include)
    : config_(config) {
  hidden_size_ = config.hidden_size;
  const OuterLayout layout = outer_layout(config);
  for (const char* name : kOuterLinears) {
    if (std::ranges::find(include, name) == include.end()) continue;
    const bool head = name == kOuterLinears.back();
    const int linear = static_cast<int>(linears_.size());
    // A tied head gets a name of its own.
    linears_.push_back(
        {head ? name : module_of(layout.embedding), config.vocabulary, config.embedding_size});
    sources_.push_back(head ? layout.head : layout.embedding);
    shared_inputs_.push_back(
        {.name = name, .linears = {linear}, .cols = config.embedding_size, .from_residual = true});
  }
}

// Norms: those of Head, in its order; an empty one is none.
BlockWeights OuterBlock::load(const Checkpoint& checkpoint, int block, Backend& backend,
                              LoadLinears linears) const {
  BlockWeights weights;
  weights.block = block;
  weights.linears.resize(linears_.size());
  weights.biases.resize(linears_.size());
  for (std::size_t i = 0; linears == LoadLinears::kYes && i < linears_.size(); ++i) {
    weights.linears[i] =
        load_weight(checkpoint, sources_[i], {linears_[i].rows, linears_[i].cols}, backend);
  }
  Head head = load_head_norm(config_, checkpoint, backend);
  weights.norms.push_back(std::move(head.norm));
  weights.norms.push_back(std::move(head.norm_bias));
  weights.norms.push_back(std::move(head.project_out));
  return weights;
}

void OuterBlock::apply(int, const BlockWeights&, BlockState& state, Backend&) const {
  state.input = Tensor();
}

Tensor OuterBlock::input_from_residual(int group, const BlockWeights& weights,
                                       const Tensor& residual, Backend& backend) const {
  require(shared_inputs_[group].name == kOuterLinears.back(), "only the head reads activations");
  const Head head{.norm = weights.norms[0].borrowed(),
                  .norm_bias = weights.norms[1].borrowed(),
                  .project_out = weights.norms[2].borrowed(),
                  .weight = {}};
  HeadInput input = head_input(config_, head, residual.view(), backend);
  for (Tensor* last : {&input.projected, &input.scaled, &input.normed}) {
    if (!last->empty()) return std::move(*last);
  }
  return copy_of(residual.view(), backend);
}

std::vector<Tensor> OuterBlock::forward_half(Half, const BlockWeights&, Tensor&, std::int64_t,
                                             Backend&) const {
  throw Error(kNoFlow);
}

void OuterBlock::backward_half(Half, const BlockWeights&, SavedActivations::OfHalf&, std::int64_t,
                               Tensor&, const TakeGradient&, InputGradient, Backend&) const {
  throw Error(kNoFlow);
}

}  // namespace roundhouse
