#include "stages/quantize/rtn/rtn.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "model/block/model_units.h"
#include "stages/flow/phase_clock.h"

namespace roundhouse {
namespace {

class Rtn final : public Method {
 public:
  explicit Rtn(OptionReader& options)
      : scheme_(options.scheme({2, 3, 4, 5, 6, 7, 8}, Grid::kAsymGptq, Grid::kSymGptq,
                               {Grid::kAsymGptq, Grid::kAsymAwq, Grid::kAsymAutoRound,
                                Grid::kSymGptq, Grid::kSymFull})),
        clip_(clip_search_steps(options.boolean("clip_search", false))) {}

  Needs needs() const override { return {}; }
  std::string cannot_include(const std::string&) const override { return ""; }
  std::vector<LinearScheme> schemes() const override { return {scheme_}; }
  BlockCost cost(const DecoderBlock& decoder, int, int, DType, MadeBefore) const override {
    const BlockSizes sizes{decoder, 0};
    BlockCost cost;
    cost.rounded = sizes.all_weights() * std::max(1, clip_.steps);
    cost.cuts["solve"] = sizes.tiles();
    sizes.share_codes(cost.traffic, scheme_.group_size);
    cost.traffic.rounds = static_cast<double>(decoder.linears().size());
    return cost;
  }

  QuantizedBlock quantize(BlockTask& task) const override {
    QuantizedBlock block{.block = task.block, .linears = {}, .record = nlohmann::json::object()};
    PhaseClock clock(task.backend);
    const auto& specs = task.decoder.linears();
    for (std::size_t i = 0; i < specs.size(); ++i) {
      const LinearScheme scheme = task.scheme_of(i, scheme_);
      if (scheme.is_original()) {
        if (task.commits()) block.linears.push_back(kept_linear(specs[i]));
        continue;
      }
      task.monitor.phase(
          fmt::format("{}: rounding {}", unit_name(task.block, task.decoder), specs[i].name));
      QuantizedLinear linear = unsolved_linear(specs[i], scheme);
      clock.measure("solve", [&] {
        const SolveError error =
            round_to_nearest(TeamSite(task), linear, task.weights.linears[i], clip_);
        linear.record = {{"error", error.error},
                         {"relative_error", error.norm > 0 ? error.error / error.norm : 0.0}};
      });
      if (task.commits()) block.linears.push_back(std::move(linear));
      task.monitor.tick();
    }
    clock.write(block.record);
    return block;
  }

 private:
  LinearScheme scheme_;
  ClipSearch clip_;
};

}  // namespace

std::unique_ptr<Method> make_rtn(OptionReader& options) { return std::make_unique<Rtn>(options); }

ClipSearch clip_search_steps(bool clip_search) {
  return {.steps = clip_search ? 80 : 0, .norm = 2.4f};
}

TileResult round_tile(const QuantizedLinear& linear, const Tensor& w, const Tensor& original,
                      const ClipSearch& clip, Backend& backend) {
  const std::int64_t rows = w.rows(), cols = w.cols(), groups = linear.groups();
  Tensor scales(backend, DType::kF32, rows, groups);
  Tensor zeros(backend, DType::kU8, rows, groups);
  Tensor codes(backend, DType::kU8, rows, cols);
  backend.find_grid({.w = w.view(),
                     .group_size = linear.group_size,
                     .grid = linear.grid,
                     .bits = linear.bits,
                     .clip = clip,
                     .scales = scales.view(),
                     .zeros = zeros.view()});
  backend.round_to_grid({.w = w.view(),
                         .group_size = linear.group_size,
                         .bits = linear.bits,
                         .scales = scales.view(),
                         .zeros = zeros.view(),
                         .codes = codes.view()});
  return download_rounded_tile(original, linear.group_size, codes, scales, zeros, backend);
}

SolveError round_to_nearest(const TeamSite& site, QuantizedLinear& linear, const Tensor& weights,
                            const ClipSearch& clip) {
  Backend& backend = site.backend;
  return solve_in_tiles(site, linear, [&](std::int64_t first, std::int64_t rows) {
    const Tensor w = tile_weights(weights, first, rows, backend);
    return round_tile(linear, w, w, clip, backend);
  });
}

}  // namespace roundhouse
