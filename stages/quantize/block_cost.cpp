#include "stages/quantize/block_cost.h"

#include <algorithm>
#include <set>
#include <vector>

namespace roundhouse {
namespace {

constexpr double kBytes = 2;  // of an activation on a device

struct Sizes {
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
BlockCost gptq_cost(const Sizes& sizes) {
  BlockCost cost{.flops = {}, .bytes_up = sizes.stream_bytes()};
  for (const InputGroup& group : sizes.block.groups()) {
    const double n = sizes.cols(group), kept = kBytes * sizes.tokens * n;
    cost.flops["gram"] += sizes.tokens * n * n;
    cost.flops["factor"] += 2 * n * n * n / 3;
    for (const int i : group.linears) {
      cost.flops["forward"] += 2 * sizes.tokens * sizes.rows(i) * n;
      cost.flops["solve"] += sizes.rows(i) * n * n;
    }
    cost.bytes_up += sizes.stream_bytes() + (group.from_residual ? 0 : kept);
    cost.bytes_down += group.from_residual ? 0 : kept + sizes.stream_bytes();
  }
  return cost;
}

// A pass over the stream for statistics, and another for the search of what is more than a linear.
BlockCost awq_cost(const Sizes& sizes, const nlohmann::json& options, double group_size) {
  constexpr double kClipCandidates = 10;
  const double points = options.at("grid_points");
  const std::vector<ScaleSet> sets =
      options.at("scale_search") ? sizes.block.scale_sets() : std::vector<ScaleSet>{};
  const bool modules =
      std::ranges::any_of(sets, [](const ScaleSet& set) { return set.group != set.last_group; });
  const double passes = modules ? 2 : 1;
  BlockCost cost{
      .flops = {}, .bytes_up = passes * sizes.stream_bytes(), .bytes_down = sizes.stream_bytes()};
  cost.flops["forward"] = 2 * passes * sizes.tokens * sizes.all_weights();
  std::set<int> with_gram;
  for (const ScaleSet& set : sets) {
    const auto first = static_cast<std::size_t>(set.group),
               last = static_cast<std::size_t>(set.last_group);
    const InputGroup& group = sizes.block.groups()[first];
    if (first == last && group.linears.size() == 1) {
      with_gram.insert(set.group);
      cost.flops["search"] += 2 * points * sizes.weights(first, last) * sizes.cols(group);
    } else {
      cost.flops["search"] += 2 * sizes.tokens * (points + 1) * sizes.weights(first, last);
    }
  }
  for (const int g : with_gram) {
    const double n = sizes.cols(sizes.block.groups()[static_cast<std::size_t>(g)]);
    cost.flops["gram"] += sizes.tokens * n * n;
  }
  if (!options.at("clip_search")) return cost;
  for (const InputGroup& group : sizes.block.groups()) {
    const double size =
        group_size > 0 ? std::min(group_size, sizes.cols(group)) : sizes.cols(group);
    for (const int i : group.linears) {
      if (std::ranges::find(sizes.block.score_linears(), i) == sizes.block.score_linears().end()) {
        cost.flops["solve"] += 2 * kClipCandidates * sizes.rows(i) * sizes.cols(group) * size;
      }
    }
  }
  return cost;
}

// A backward pass makes the gradients of the weights, and of all inputs but the block's own.
BlockCost signround_cost(const Sizes& sizes, double tuned_tokens) {
  BlockCost cost;
  const double forward = 2 * sizes.all_weights();
  cost.flops["target"] = cost.flops["output"] = forward * sizes.tokens;
  cost.flops["forward"] = forward * tuned_tokens;
  cost.flops["backward"] =
      (forward + 2 * sizes.weights(1, sizes.block.groups().size() - 1)) * tuned_tokens;
  const double batches = 2 * kBytes * tuned_tokens * static_cast<double>(sizes.block.hidden_size());
  cost.bytes_up = 2 * sizes.stream_bytes() + batches;
  cost.bytes_down = 2 * sizes.stream_bytes();
  return cost;
}

}  // namespace

BlockCost cost_of_block(const Recipe& recipe, const DecoderBlock& shape, int samples, int length) {
  const Sizes sizes{shape, static_cast<double>(samples) * length};
  const nlohmann::json& options = recipe.options;
  if (recipe.method == "gptq") return gptq_cost(sizes);
  if (recipe.method == "awq") {
    return awq_cost(sizes, options, static_cast<double>(recipe.schemes.front().group_size));
  }
  if (recipe.method == "signround") {
    const int batch =
        std::min({options.at("batch_size").get<int>(), options.at("samples").get<int>(), samples});
    return signround_cost(sizes, options.at("iterations").get<double>() * batch * length);
  }
  return {};
}

bool works_in_f32(const std::string& phase) { return phase == "factor" || phase == "solve"; }

}  // namespace roundhouse
