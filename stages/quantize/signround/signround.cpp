#include "stages/quantize/signround/signround.h"

#include <algorithm>
#include <array>
#include <limits>
#include <string>
#include <string_view>

#include "stages/flow/block_sum.h"
#include "stages/quantize/signround/batch.h"
#include "stages/quantize/signround/settings.h"
#include "stages/quantize/signround/tuning.h"

namespace roundhouse {
namespace {

struct Preset {
  std::string_view name;
  int iterations;
  double rate;      // 0: 1 / iterations
  bool twice_rate;  // of that at 3 bits and below, from 1000 iterations on
  Grid grid;
  int samples;
  Sampling sampling;
};
constexpr std::array<Preset, 4> kPresets{{
    {"paper", 200, 0.0, false, Grid::kAsymAutoRound, 512, Sampling::kIndependent},
    {"current", 200, 0.0, true, Grid::kSymFull, 128, Sampling::kEpochs},
    {"light", 50, 0.005, false, Grid::kSymFull, 128, Sampling::kEpochs},
    {"best", 1000, 0.0, true, Grid::kSymFull, 512, Sampling::kEpochs},
}};

double default_rate(const Preset& preset, int iterations, int bits) {
  if (preset.rate > 0.0) return preset.rate;
  const bool twice = preset.twice_rate && iterations >= 1000 && bits <= 3;
  return (twice ? 2.0 : 1.0) / iterations;
}

SignRoundSettings read_settings(OptionReader& options) {
  std::vector<std::string> names;
  for (const Preset& preset : kPresets) names.emplace_back(preset.name);
  const std::string chosen = options.one_of("preset", names.front(), names);
  const Preset& preset = *std::ranges::find(kPresets, chosen, &Preset::name);

  SignRoundSettings settings;
  settings.scheme = options.scheme({2, 3, 4, 5, 6, 7, 8}, preset.grid, Grid::kSymFull,
                                   {Grid::kAsymAutoRound, Grid::kSymFull});
  settings.iterations = options.integer("iterations", preset.iterations, 1, 100000);
  settings.batch_size = options.integer("batch_size", 8, 1, 4096);
  constexpr double kLeastRate = 1e-6;
  settings.rate = options.number("learning_rate",
                                 default_rate(preset, settings.iterations, settings.scheme.bits),
                                 kLeastRate, 1.0);
  const double range_rate = options.number("minmax_learning_rate", settings.rate, kLeastRate, 1.0);
  settings.range_rate = options.boolean("minmax_tuning", true) ? range_rate : 0.0;
  settings.quantized_input = options.boolean("quantized_input", true);
  settings.best_loss = options.boolean("best_loss", true);
  settings.samples = options.integer("samples", preset.samples, 1, 1000000);
  const bool epochs = preset.sampling == Sampling::kEpochs;
  settings.sampling = options.one_of("sampling", epochs ? "epochs" : "independent",
                                     {"independent", "epochs"}) == "epochs"
                          ? Sampling::kEpochs
                          : Sampling::kIndependent;
  settings.seed =
      static_cast<std::uint64_t>(options.integer("seed", 42, 0, std::numeric_limits<int>::max()));
  return settings;
}

// A backward pass makes the gradients of the weights, and of all inputs but the block's own.
BlockCost signround_cost(const BlockSizes& sizes, const SignRoundSettings& settings, int batch,
                         MadeBefore made) {
  BlockCost cost;
  const double iterations = settings.iterations;
  const double tuned_tokens = iterations * batch * sizes.length;
  const double forward = 2 * sizes.all_weights();
  cost.flops["target"] = cost.flops["output"] = forward * sizes.tokens;
  cost.flops["forward"] = forward * tuned_tokens;
  cost.flops["backward"] =
      (forward + 2 * sizes.weights(1, sizes.block.shared_inputs().size() - 1)) * tuned_tokens;
  if (!settings.quantized_input) cost.flops.erase("output");
  if (made.original) cost.flops.erase("target");
  const double batches =
      2 * kBytesOfActivation * tuned_tokens * static_cast<double>(sizes.block.hidden_size());
  const double passes = made.original ? 1 : 2;
  cost.bytes_up = passes * sizes.stream_bytes() + batches;
  cost.bytes_down = passes * sizes.stream_bytes();

  const double attention = sizes.attention() / sizes.tokens;  // a token's
  cost.attention["output"] = sizes.attention();
  if (!made.original) cost.attention["target"] = sizes.attention();
  cost.attention["forward"] = attention * tuned_tokens;
  cost.attention["backward"] = 2.5 * attention * tuned_tokens;
  const int parts = parts_of_batch(batch, static_cast<std::int64_t>(sizes.length));
  cost.cuts["forward"] = cost.cuts["backward"] = {{1.0, parts}};
  cost.cuts["solve"] = sizes.tiles();
  cost.rounded = (2 * iterations + 1) * sizes.all_weights();  // a rounding and a step each
  for (const LinearSpec& linear : sizes.block.linears()) {
    cost.traffic.sums.push_back({.tiles = bytes_of_tiles(linear),
                                 .pieces = parts,
                                 .times = iterations - 1});  // no step after the last
  }
  cost.traffic.spread = iterations * sizes.all_weights();
  // The samples of each batch, of two streams.
  cost.traffic.scattered = 2 * tuned_tokens * static_cast<double>(sizes.block.hidden_size());
  sizes.share_codes(cost.traffic, settings.scheme.group_size);
  cost.traffic.gathered += 8 * iterations * parts;
  cost.traffic.rounds = iterations * 2 * static_cast<double>(sizes.block.linears().size());
  // A part's gradients, each linear's added up as it comes; the original weights; and of each weight its offset and kept code.
  cost.memory.summed = 4 * sizes.all_weights();
  for (const LinearSpec& linear : sizes.block.linears()) {
    cost.memory.arriving =
        std::max(cost.memory.arriving, 4.0 * static_cast<double>(linear.rows * linear.cols));
  }
  cost.memory.added_at_once = BlockSum::kAddedAtOnce;
  cost.memory.pieces = parts;
  cost.memory.weights = sizes.all_weights();
  cost.memory.by_tiles = (4 + 1) * sizes.all_weights();
  cost.memory.streams = settings.quantized_input ? 0 : 1;
  cost.memory.saved_sequences = (batch + parts - 1) / parts;
  return cost;
}

class SignRound final : public Method {
 public:
  explicit SignRound(const SignRoundSettings& settings) : settings_(settings) {}
  Needs needs() const override {
    return {.quantized_stream = settings_.quantized_input,
            .full_precision_stream = true,
            .widest_team = std::min(settings_.batch_size, settings_.samples)};
  }
  std::vector<LinearScheme> schemes() const override { return {settings_.scheme}; }
  BlockCost cost(const DecoderBlock& decoder, int samples, int length, DType,
                 MadeBefore made) const override {
    const int batch = std::min({settings_.batch_size, settings_.samples, samples});
    return signround_cost(
        {decoder, static_cast<double>(samples) * length, static_cast<double>(length)}, settings_,
        batch, made);
  }
  QuantizedBlock quantize(BlockTask& task) const override { return tune_block(task, settings_); }

 private:
  SignRoundSettings settings_;
};

}  // namespace

std::unique_ptr<Method> make_signround(OptionReader& options) {
  return std::make_unique<SignRound>(read_settings(options));
}

}  // namespace roundhouse
