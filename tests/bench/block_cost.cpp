#include "tests/bench/block_cost.h"

#include <algorithm>
#include <set>

namespace roundhouse {
namespace {

constexpr double kBytes = 2;  // of an activation on a device

struct Shape {
  const DecoderBlock& block;
  double tokens;

  double rows(int linear) const {
    return static_cast<double>(block.linears()[static_cast<std::size_t>(linear)].rows);
  }
  double cols(const InputGroup& group) const { return static_cast<double>(group.cols); }
  // Weights of the groups from `first` to `last`.
  double weights(std::size_t first, std::size_t last) const {
    double sum = 0;
    for (std::size_t g = first; g <= last; ++g) {
      for (const int i : block.groups()[g].linears) sum += rows(i) * cols(block.groups()[g]);
    }
    return sum;
  }
  double all_weights() const { return weights(0, block.groups().size() - 1); }
  double stream_bytes() const { return kBytes * tokens * static_cast<double>(block.hidden_size()); }
};

// The residual goes in for each group and out where it changes; the inputs that are no function of it are kept.
BlockCost gptq_cost(const Shape& shape) {
  BlockCost cost{.flops = {}, .bytes_up = shape.stream_bytes()};
  for (const InputGroup& group : shape.block.groups()) {
    const double n = shape.cols(group), kept = kBytes * shape.tokens * n;
    cost.flops["gram"] += shape.tokens * n * n;
    cost.flops["factor"] += 2 * n * n * n / 3;
    for (const int i : group.linears) {
      cost.flops["forward"] += 2 * shape.tokens * shape.rows(i) * n;
      cost.flops["solve"] += shape.rows(i) * n * n;
    }
    cost.bytes_up += shape.stream_bytes() + (group.from_residual ? 0 : kept);
    cost.bytes_down += group.from_residual ? 0 : kept + shape.stream_bytes();
  }
  return cost;
}

// Two passes over the stream, for statistics and for the search of what is more than a linear.
BlockCost awq_cost(const Shape& shape, double points, double group_size) {
  constexpr double kClipCandidates = 10;
  BlockCost cost{
      .flops = {}, .bytes_up = 2 * shape.stream_bytes(), .bytes_down = shape.stream_bytes()};
  cost.flops["forward"] = 4 * shape.tokens * shape.all_weights();
  std::set<int> with_gram;
  for (const ScaleSet& set : shape.block.scale_sets()) {
    const auto first = static_cast<std::size_t>(set.group),
               last = static_cast<std::size_t>(set.last_group);
    const InputGroup& group = shape.block.groups()[first];
    if (first == last && group.linears.size() == 1) {
      with_gram.insert(set.group);
      cost.flops["search"] += 2 * points * shape.weights(first, last) * shape.cols(group);
    } else {
      cost.flops["search"] += 2 * shape.tokens * (points + 1) * shape.weights(first, last);
    }
  }
  for (const int g : with_gram) {
    const double n = shape.cols(shape.block.groups()[static_cast<std::size_t>(g)]);
    cost.flops["gram"] += shape.tokens * n * n;
  }
  for (const InputGroup& group : shape.block.groups()) {
    const double size =
        group_size > 0 ? std::min(group_size, shape.cols(group)) : shape.cols(group);
    for (const int i : group.linears) {
      if (std::ranges::find(shape.block.score_linears(), i) == shape.block.score_linears().end()) {
        cost.flops["solve"] += 2 * kClipCandidates * shape.rows(i) * shape.cols(group) * size;
      }
    }
  }
  return cost;
}

// A backward pass makes the gradients of the weights, and of all inputs but the block's own.
BlockCost signround_cost(const Shape& shape, double tuned_tokens) {
  BlockCost cost;
  const double forward = 2 * shape.all_weights();
  cost.flops["target"] = cost.flops["output"] = forward * shape.tokens;
  cost.flops["forward"] = forward * tuned_tokens;
  cost.flops["backward"] =
      (forward + 2 * shape.weights(1, shape.block.groups().size() - 1)) * tuned_tokens;
  const double batches = 2 * kBytes * tuned_tokens * static_cast<double>(shape.block.hidden_size());
  cost.bytes_up = 2 * shape.stream_bytes() + batches;
  cost.bytes_down = 2 * shape.stream_bytes();
  return cost;
}

}  // namespace

BlockCost cost_of_block(const Recipe& recipe, const DecoderBlock& shape, int samples, int length) {
  const Shape sized{shape, static_cast<double>(samples) * length};
  const nlohmann::json& options = recipe.options;
  if (recipe.method == "gptq") return gptq_cost(sized);
  if (recipe.method == "awq") {
    return awq_cost(sized, options.at("grid_points"), static_cast<double>(recipe.group_size));
  }
  if (recipe.method == "signround") {
    const int batch =
        std::min({options.at("batch_size").get<int>(), options.at("samples").get<int>(), samples});
    return signround_cost(sized, options.at("iterations").get<double>() * batch * length);
  }
  return {};
}

bool works_in_f32(const std::string& phase) { return phase == "factor" || phase == "solve"; }

}  // namespace roundhouse
