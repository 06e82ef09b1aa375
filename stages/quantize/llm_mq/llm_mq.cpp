#include "stages/quantize/llm_mq/llm_mq.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include "base/error.h"
#include "model/block/model_units.h"
#include "stages/quantize/awq/awq.h"
#include "stages/quantize/awq/settings.h"
#include "stages/quantize/largest.h"
#include "stages/quantize/llm_mq/bit_allocation.h"
#include "stages/quantize/row_tiles.h"

namespace roundhouse {
namespace {

constexpr std::array kScores = {"first_order", "absolute", "fisher"};  // in the statistics
constexpr std::size_t kWidthCount = kWidths.size();

class LlmMq final : public Method {
 public:
  explicit LlmMq(OptionReader& options) {
    average_ = options.average_bits(2.0, 4.0);
    awq_.scheme.group_size = options.group_size();
    awq_.scheme.grid =
        options.grid(Grid::kAsymAwq, Grid::kSymGptq,
                     {Grid::kAsymAwq, Grid::kAsymGptq, Grid::kSymGptq, Grid::kSymFull});
    score_ = options.one_of("score", "first-order", {"first-order", "absolute", "fisher"});
    fused_ = options.one_of("tie", "fused", {"fused", "none"}) == "fused";
    awq_.outliers = options.number("outliers", 0.5, 0.0, 50.0);
    read_searches(options, awq_);
    gradients_ = options.gradients();
    gradients_.sums = {.sum = true, .squares = true};
    gradients_.use = Needs::Gradients::Use::kStatistics;
  }

  Needs needs() const override {
    return {.full_precision_stream = true,
            .gradients = gradients_,
            .decision = true,
            .gathers = awq_gathers(awq_)};
  }
  std::vector<LinearScheme> schemes() const override {
    std::vector<LinearScheme> schemes;
    for (const int bits : kWidths) schemes.push_back(awq_.scheme_at(bits));
    return schemes;
  }
  bool one_scheme_an_input() const override { return fused_; }
  BlockCost cost(const DecoderBlock& decoder, int samples, int length, DType activations,
                 MadeBefore made) const override {
    return awq_cost(decoder, samples, length, activations, awq_, made);
  }

  std::string statistics_settings() const override {
    return nlohmann::json{awq_.scheme.group_size, name_of(awq_.scheme.grid), awq_.outliers}.dump();
  }
  void check(const DecoderBlock& decoder, int blocks,
             std::span<const LinearOverride> overrides) const override {
    if (overrides.empty()) return;
    const Weights all = count(decoder, blocks, overrides);
    const std::int64_t least = all.fixed_memory + all.free * kWidths.front();
    if (least <= budget_of(average_, all.free + all.fixed)) return;
    throw InputError(fmt::format(
        "an average of {} bits is out of reach: the overrides give {} of {} weights {:.2f} bits "
        "each, "
        "and the others take {} at least; raise bits, or lower those of the overrides",
        average_, all.fixed, all.free + all.fixed,
        static_cast<double>(all.fixed_memory) / static_cast<double>(all.fixed), kWidths.front()));
  }
  nlohmann::json statistics(BlockTask& task) const override {
    nlohmann::json linears = nlohmann::json::array();
    for (std::size_t i = 0; i < task.decoder.linears().size(); ++i) {
      task.monitor.phase(fmt::format("{}: sensitivity of {}", unit_name(task.block, task.decoder),
                                     task.decoder.linears()[i].name));
      linears.push_back(statistics_of(task, i));
    }
    return {{"linears", std::move(linears)}};
  }

  nlohmann::json decide(ModelTask& task) const override {
    const auto& specs = task.decoder.linears();
    std::vector<WidthCosts> costs;
    std::vector<std::array<double, kWidthCount>> absolute;  // of each, by that score
    std::vector<int> tie;
    const Weights all =
        count(task.decoder, static_cast<int>(task.statistics.size()), task.overrides);
    const std::int64_t weights = all.free + all.fixed;
    const std::vector<int> tie_of_linear = ties(task.decoder);
    for (std::size_t block = 0; block < task.statistics.size(); ++block) {
      for (std::size_t i = 0; i < specs.size(); ++i) {
        if (is_overridden(task.overrides, task.decoder, static_cast<int>(block), i)) continue;
        const nlohmann::json& sums = task.statistics[block].at("linears").at(i);
        WidthCosts cost{.name = fmt::format("block {}, {}", block, specs[i].name),
                        .sensitivity = sensitivities(sums.at(key_of_score()))};
        for (std::size_t b = 0; b < kWidthCount; ++b)
          cost.memory[b] = memory_of_codes(specs[i].rows, specs[i].cols, kWidths[b]);
        absolute.push_back(sensitivities(sums.at("absolute")));
        costs.push_back(std::move(cost));
        tie.push_back(static_cast<int>(block * specs.size()) + tie_of_linear[i]);
      }
    }
    // Linears of a width that was asked for are in the average, and those that stay as they are are not.
    const std::int64_t budget = budget_of(average_, weights) - all.fixed_memory;
    const BitAllocation by_score = allocate_bits(costs, tie, budget);
    // What is left where more bits count as worse, as they may by sums with signs.
    std::vector<WidthCosts> rest = costs;
    for (std::size_t i = 0; i < rest.size(); ++i) {
      rest[i].sensitivity = absolute[i];
      rest[i].narrowest = by_score.bits[i];
    }
    const BitAllocation chosen = allocate_bits(rest, tie, budget);
    double sensitivity = 0;
    for (std::size_t i = 0; i < costs.size(); ++i)
      sensitivity += costs[i].sensitivity[index_of_width(chosen.bits[i])];
    nlohmann::json bits = nlohmann::json::array();
    std::int64_t with_grids = 0;
    std::size_t next = 0;
    for (std::size_t block = 0; block < task.statistics.size(); ++block) {
      nlohmann::json& of_block = bits.emplace_back(nlohmann::json::array());
      for (std::size_t i = 0; i < specs.size(); ++i) {
        LinearScheme scheme = awq_.scheme;
        const int at = static_cast<int>(block);
        if (is_overridden(task.overrides, task.decoder, at, i)) {
          scheme = scheme_of(task.overrides, task.decoder, at, i, scheme);
        } else {
          scheme.bits = chosen.bits.at(next++);
        }
        of_block.push_back(scheme.bits);
        if (scheme.is_original()) continue;
        with_grids +=
            memory_with_grids(specs[i].rows, specs[i].cols, scheme.bits, scheme.group_size);
      }
    }
    const auto average = [&](std::int64_t memory) {
      return static_cast<double>(memory) / static_cast<double>(weights);
    };
    if (task.world.rank() == 0) {
      task.monitor.event({{"event", "bits"},
                          {"average", average(chosen.memory + all.fixed_memory)},
                          {"average_by_score", average(by_score.memory + all.fixed_memory)},
                          {"average_with_grids", average(with_grids)},
                          {"bits", bits}});
    }
    return {{"bits", std::move(bits)},
            {"average", average(chosen.memory + all.fixed_memory)},
            {"average_with_grids", average(with_grids)},
            {"sensitivity", sensitivity}};
  }

  QuantizedBlock quantize(BlockTask& task) const override {
    AwqSettings settings = awq_;
    settings.bits =
        task.decision.at("bits").at(static_cast<std::size_t>(task.block)).get<std::vector<int>>();
    return quantize_by_awq(task, settings);
  }

 private:
  // Of the linears that are quantized: weights whose width is free, those of a width that overrides ask for, and bits of these.
  struct Weights {
    std::int64_t free = 0, fixed = 0, fixed_memory = 0;
  };
  Weights count(const DecoderBlock& decoder, int blocks,
                std::span<const LinearOverride> overrides) const {
    Weights all;
    for (int block = 0; block < blocks; ++block) {
      for (std::size_t i = 0; i < decoder.linears().size(); ++i) {
        const LinearSpec& spec = decoder.linears()[i];
        if (!is_overridden(overrides, decoder, block, i)) {
          all.free += spec.rows * spec.cols;
          continue;
        }
        const LinearScheme scheme = scheme_of(overrides, decoder, block, i, awq_.scheme);
        if (scheme.is_original()) continue;
        all.fixed += spec.rows * spec.cols;
        all.fixed_memory += memory_of_codes(spec.rows, spec.cols, scheme.bits);
      }
    }
    return all;
  }

  // null: what JSON makes of a number that is not finite
  static std::array<double, kWidthCount> sensitivities(const nlohmann::json& sums) {
    std::array<double, kWidthCount> sensitivities;
    for (std::size_t b = 0; b < kWidthCount; ++b) {
      sensitivities[b] = sums.at(b).is_number() ? std::abs(sums.at(b).get<double>())
                                                : std::numeric_limits<double>::quiet_NaN();
    }
    return sensitivities;
  }
  static std::size_t index_of_width(int bits) {
    return static_cast<std::size_t>(std::ranges::find(kWidths, bits) - kWidths.begin());
  }

  std::string key_of_score() const {
    return score_ == "first-order" ? kScores[0] : score_ == "absolute" ? kScores[1] : kScores[2];
  }

  // Linears of a block that have the same number have the same bits.
  std::vector<int> ties(const DecoderBlock& decoder) const {
    std::vector<int> tie(decoder.linears().size());
    for (std::size_t i = 0; i < tie.size(); ++i) tie[i] = static_cast<int>(i);
    for (const SharedInput& group : decoder.shared_inputs()) {
      for (const int i : group.linears) {
        if (fused_) tie[i] = group.linears.front();
      }
    }
    return tie;
  }

  nlohmann::json statistics_of(BlockTask& task, std::size_t index) const {
    const LinearSpec& spec = task.decoder.linears()[index];
    const std::vector<BlockGradients::Tile>& tiles = (*task.gradients)[index];
    const Tensor& weights = task.weights.linears[index];
    const float large_from = magnitude_of_largest(
        task.team, spec.rows * spec.cols, awq_.outliers, [&](KeySelection& selection) {
          for (const BlockGradients::Tile& tile : tiles) {
            const Tensor w = tile_weights(weights, tile.first, tile.sum.rows, task.backend);
            selection.count(w.view(), task.backend);
          }
        });
    std::size_t next = 0;
    const std::vector<double> sums =
        sum_over_tiles(task.team, spec.rows, kScores.size() * kWidthCount,
                       [&](std::int64_t first, std::int64_t rows) {
                         const BlockGradients::Tile& tile = tiles.at(next++);
                         require(tile.first == first, "gradients of other rows");
                         std::vector<double> numbers;
                         with_rows_named(spec.name, first, [&] {
                           numbers = sums_of_tile(tile_weights(weights, first, rows, task.backend),
                                                  tile, large_from, task.backend);
                         });
                         task.monitor.tick();
                         return numbers;
                       });
    nlohmann::json record = {{"name", spec.name}};
    for (std::size_t score = 0; score < kScores.size(); ++score) {
      for (std::size_t b = 0; b < kWidthCount; ++b)
        record[kScores[score]].push_back(sums[score * kWidthCount + b]);
    }
    return record;
  }

  // By score, then by width.
  std::vector<double> sums_of_tile(const Tensor& w, const BlockGradients::Tile& tile,
                                   float large_from, Backend& backend) const {
    const std::int64_t rows = w.rows(), cols = w.cols();
    const std::int64_t group_size = awq_.scheme.group_size_for(cols);
    const std::int64_t groups = (cols + group_size - 1) / group_size;
    std::vector<Tensor> grids;  // scales and zeros of each width
    std::array<RoundingWidth, kWidthCount> widths;
    grids.reserve(2 * kWidthCount);
    for (std::size_t b = 0; b < kWidthCount; ++b) {
      const bool sparse = awq_.scheme_at(kWidths[b]).sparse;
      Tensor kept(backend, DType::kF32, rows, cols);
      backend.copy(w.view(), kept.view());
      if (sparse) remove_large(kept, large_from, backend);
      Tensor& scales = grids.emplace_back(backend, DType::kF32, rows, groups);
      Tensor& zeros = grids.emplace_back(backend, DType::kU8, rows, groups);
      backend.find_grid({.w = std::as_const(kept).view(),
                         .group_size = group_size,
                         .grid = awq_.scheme.grid,
                         .bits = kWidths[b],
                         .clip = {},
                         .scales = scales.view(),
                         .zeros = zeros.view()});
      widths[b] = {.bits = kWidths[b], .scales = scales.view(), .zeros = zeros.view()};
      // The kernel keeps what is above, here what is as large or larger.
      if (sparse) widths[b].kept_above = std::nextafter(large_from, 0.0f);
    }
    std::array<RoundingSums, kWidthCount> plain, weighted;
    const auto products = [&](const ConstMatrix& gradient, std::span<RoundingSums> sums) {
      backend.rounding_products({.gradient = gradient,
                                 .w = w.view(),
                                 .group_size = group_size,
                                 .widths = widths,
                                 .sums = sums});
    };
    products(tile.sum, plain);
    const Tensor root = square_root(tile.squares, backend);
    products(root.view(), weighted);
    std::vector<double> numbers;
    for (const RoundingSums& sums : plain) numbers.push_back(sums.first_order);
    for (const RoundingSums& sums : plain) numbers.push_back(sums.absolute);
    for (const RoundingSums& sums : weighted) numbers.push_back(sums.squares);
    return numbers;
  }

  // On the host: few do so, and it is little beside making what it is of.
  static Tensor square_root(const ConstMatrix& x, Backend& backend) {
    HostTensor values(DType::kF32, {x.rows, x.cols});
    Tensor dense(backend, DType::kF32, x.rows, x.cols);
    backend.copy(x, dense.view());
    backend.download(dense.f32(), values.bytes());
    for (float& value : values.as<float>()) value = std::sqrt(value);
    return Tensor::upload(backend, values.view(), DType::kF32);
  }

  double average_ = 4.0;
  AwqSettings awq_;
  std::string score_;
  bool fused_ = true;
  Needs::Gradients gradients_{};
};

}  // namespace

std::unique_ptr<Method> make_llm_mq(OptionReader& options) {
  return std::make_unique<LlmMq>(options);
}

}  // namespace roundhouse
