#include "stages/quantize/awq/awq.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/error.h"
#include "model/block/model_units.h"
#include "stages/flow/micro_batch.h"
#include "stages/flow/phase_clock.h"
#include "stages/flow/shard_sum.h"
#include "stages/quantize/awq/fold.h"
#include "stages/quantize/awq/search.h"
#include "stages/quantize/awq/settings.h"
#include "stages/quantize/awq/statistics.h"
#include "stages/quantize/largest.h"
#include "stages/quantize/rtn/rtn.h"
#include "stages/quantize/sparse_tiles.h"

namespace roundhouse {
namespace {

constexpr int kClipCandidates = 10;  // 1.00, 0.95, .., 0.55
constexpr int kClipDivisions = 20;

class AwqQuantizer {
 public:
  AwqQuantizer(BlockTask& task, const AwqSettings& settings)
      : task_(task), settings_(settings), clock_(task.backend) {
    require(task.original && task.samples, "AWQ needs samples and their activations");
    // Else storing the residual would round it, and a resumed run would have other bits.
    require(task.original->type() == task.backend.activation_type(),
            "activations are kept in another type than the device computes with");
  }

  QuantizedBlock run() {
    QuantizedBlock block{.block = task_.block, .linears = {}, .record = nlohmann::json::object()};
    const auto& sets = task_.decoder.scale_sets();
    const bool modules =
        settings_.scale_search && std::ranges::any_of(sets, [this](const ScaleSet& set) {
          return !is_judged_by_gram(task_, set);
        });  // whose search is another pass over the block's inputs
    bool passed = false;
    const auto collect = [&] {
      passed = true;
      return collect_statistics(task_, settings_,
                                /*store_output=*/!modules && task_.makes_original(), clock_);
    };
    BlockStatistics own;
    if (task_.shared) {
      statistics_ = &task_.shared->get<BlockStatistics>(statistics_key(task_, settings_), collect);
    } else {
      own = collect();
      statistics_ = &own;
    }
    if (!passed && !modules && task_.makes_original()) {
      clock_.measure("forward", [&] {
        run_forward(task_, task_.weights, *task_.original, task_.output_of_original());
      });
    }
    block.record.update(statistics_->record);
    count_statistics(modules ? 2 : 1);

    std::vector<ChosenScales> chosen;
    if (settings_.scale_search) {
      chosen = search_scales(task_, settings_, *statistics_, clock_);
    }
    Folding folding;
    if (!chosen.empty()) {
      folding = fold(task_.checkpoint, task_.decoder, task_.block, chosen);
    } else {
      folding.column_factors.resize(task_.decoder.linears().size());
      folding.row_divisors.resize(task_.decoder.linears().size());
    }
    block.linears.resize(task_.decoder.linears().size());
    for (int g = 0; g < static_cast<int>(task_.decoder.shared_inputs().size()); ++g) {
      for (const int i : task_.decoder.shared_inputs()[g].linears) {
        block.linears[i] = quantize_linear(i, g, folding);
        task_.monitor.tick();
      }
    }
    for (std::size_t i = 0; i < chosen.size(); ++i) {
      const nlohmann::json& record =
          block.record["scale_sets"].emplace_back(std::move(chosen[i].record));
      if (!record.contains("fallback")) continue;
      const int group = task_.decoder.scale_sets()[i].group;
      for (const int linear : task_.decoder.shared_inputs()[group].linears) {
        if (!block.linears[linear].original)
          block.linears[linear].record["fallback"] = record.at("fallback");
      }
    }
    clock_.write(block.record);
    if (task_.commits()) {
      block.replaced = std::move(folding.replaced);
    } else {
      block.linears.clear();
    }
    return block;
  }

 private:
  // Of the linear's clipping, summed over groups.
  struct ClipCount {
    double clipped = 0, error_before = 0, error_after = 0;
  };

  QuantizedLinear quantize_linear(int index, int group, const Folding& folding) {
    const auto i = static_cast<std::size_t>(index);
    const LinearSpec& spec = task_.decoder.linears()[i];
    const LinearScheme scheme = settings_.scheme_of(task_, index);
    if (scheme.is_original()) return kept_linear(spec);
    const bool clips =
        settings_.clip_search && std::ranges::find(task_.decoder.score_linears(), index) ==
                                     task_.decoder.score_linears().end();
    task_.monitor.phase(fmt::format("{}: {}{}", unit_name(task_.block, task_.decoder),
                                    clips ? "clipping and rounding " : "rounding ", spec.name));
    QuantizedLinear linear = unsolved_linear(spec, scheme);
    clock_.measure("solve", [&] {
      std::vector<float> ones;
      if (folding.column_factors[i].empty()) {
        ones.assign(static_cast<std::size_t>(spec.cols), 1.0f);
      }
      const Tensor columns =
          upload_row(ones.empty() ? folding.column_factors[i] : ones, task_.backend);
      const Tensor rows_by = upload_row(folding.row_divisors[i], task_.backend);
      static const Tensor kNone;
      const Tensor& grams =
          clips ? statistics_->inputs[group].group_grams.at(linear.group_size) : kNone;
      std::map<std::int64_t, ClipCount> counts;  // by first row of this rank's tiles
      const auto folded_tile = [&](std::int64_t first, std::int64_t rows) {
        Tensor w = tile_weights(task_.weights.linears[i], first, rows, task_.backend);
        const ConstMatrix by = rows_by.view();
        task_.backend.fold_scales(
            {.w = w.view(),
             .column_factors = columns.view(),
             .row_divisors = by.cols > 0 ? by.col_range(first, first + rows) : by});
        return w;
      };
      const float large_from = scheme.sparse ? find_large(spec, index, folded_tile)
                                             : std::numeric_limits<float>::infinity();
      std::map<std::int64_t, SparseTile> beside;  // likewise
      const SolveError error =
          solve_in_tiles(TeamSite(task_), linear, [&](std::int64_t first, std::int64_t rows) {
            const Tensor all = folded_tile(first, rows);
            const auto copy_of = [&](const Tensor& from) {
              Tensor to(task_.backend, DType::kF32, rows, spec.cols);
              task_.backend.copy(from.view(), to.view());
              return to;
            };
            Tensor kept = copy_of(all), removed;
            if (scheme.sparse) removed = remove_large(kept, large_from, task_.backend);
            Tensor w = copy_of(kept);
            if (clips) counts[first] = clip(w, columns, grams, linear);
            task_.monitor.tick();
            TileResult result = round_tile(linear, w, kept, {}, task_.backend);
            if (scheme.sparse) beside[first] = sparse_tile(all, removed, result, linear);
            return result;
          });
      linear.record = {{"error", error.error},
                       {"relative_error", error.norm > 0 ? error.error / error.norm : 0.0}};
      if (scheme.sparse) gather_sparse(linear, beside);
      if (clips) record_clip(linear, counts);
    });
    return linear;
  }

  // The magnitude from which on folded weights of a linear are kept beside the rounded ones.
  float find_large(const LinearSpec& spec, int index,
                   const std::function<Tensor(std::int64_t first, std::int64_t rows)>& tile) {
    return magnitude_of_largest(
        task_.team, spec.rows * spec.cols, settings_.outliers, [&](KeySelection& selection) {
          for (const RowTile& at : tiles_of_linear(spec, index, task_.team.size())) {
            if (at.owner != task_.team.rank()) continue;
            const Tensor w = tile(at.first, at.rows);
            selection.count(w.view(), task_.backend);
            task_.monitor.tick();
          }
        });
  }

  // What removed weights differ by from the values that their codes stand for.
  SparseTile sparse_tile(const Tensor& w, const Tensor& removed, const TileResult& tile,
                         const QuantizedLinear& linear) {
    const std::int64_t rows = w.rows(), cols = w.cols(), groups = linear.groups();
    HostTensor all(DType::kF32, {rows, cols}), where(DType::kU8, {rows, cols});
    task_.backend.download(w.f32(), all.bytes());
    task_.backend.download(removed.view().data, where.bytes());
    SparseTile sparse;
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t col = 0; col < cols; ++col) {
        const auto at = static_cast<std::size_t>(row * cols + col);
        if (where.as<std::uint8_t>()[at] == 0) continue;
        const auto group = static_cast<std::size_t>(row * groups + col / linear.group_size);
        const float value = half_to_float(tile.scales.as<std::uint16_t>()[group]) *
                            static_cast<float>(tile.codes.as<std::uint8_t>()[at] -
                                               tile.zeros.as<std::uint8_t>()[group]);
        sparse.columns.push_back(static_cast<std::int32_t>(col));
        sparse.values.push_back(all.as<float>()[at] - value);
      }
      sparse.starts.push_back(static_cast<std::int32_t>(sparse.columns.size()));
    }
    return sparse;
  }

  void gather_sparse(QuantizedLinear& linear, const std::map<std::int64_t, SparseTile>& tiles) {
    SparseTiles all;
    share_tiles(
        task_.team, linear.rows,
        [&](std::int64_t first, std::int64_t) {
          TileBytes bytes;
          append(bytes, tiles.at(first));
          return bytes;
        },
        [&](std::int64_t first, TileReader& bytes) {
          all.take(std::min(kTileRows, linear.rows - first), bytes);
        });
    linear.sparse = all.finish();
    linear.record["sparse_entries"] = all.entries();
  }

  ClipCount clip(Tensor& w, const Tensor& column_scales, const Tensor& grams,
                 const QuantizedLinear& linear) {
    const std::int64_t rows = w.rows(), groups = linear.groups();
    Tensor choices(task_.backend, DType::kU8, rows, groups);
    Tensor errors(task_.backend, DType::kF32, rows, 2 * groups);
    task_.backend.clip_groups({.w = w.view(),
                               .column_scales = column_scales.view(),
                               .grams = grams.view(),
                               .group_size = linear.group_size,
                               .grid = linear.grid,
                               .bits = linear.bits,
                               .candidates = kClipCandidates,
                               .divisions = kClipDivisions,
                               .choices = choices.view(),
                               .errors = errors.view()});
    HostTensor chosen(DType::kU8, {rows, groups}), error(DType::kF32, {rows, 2 * groups});
    task_.backend.download(choices.view().data, chosen.bytes());
    task_.backend.download(errors.f32(), error.bytes());
    ClipCount count;
    for (const std::uint8_t choice : chosen.as<std::uint8_t>()) count.clipped += choice > 0;
    const std::span<const float> values = std::as_const(error).as<float>();
    for (std::size_t i = 0; i < values.size(); i += 2) {
      count.error_before += static_cast<double>(values[i]);
      count.error_after += static_cast<double>(values[i + 1]);
    }
    return count;
  }

  void record_clip(QuantizedLinear& linear, const std::map<std::int64_t, ClipCount>& counts) {
    const std::vector<double> sums =
        sum_over_tiles(task_.team, linear.rows, 3, [&](std::int64_t first, std::int64_t) {
          const ClipCount& count = counts.at(first);
          return std::vector<double>{count.clipped, count.error_before, count.error_after};
        });
    linear.record["clip"] = {{"groups", linear.rows * linear.groups()},
                             {"clipped", static_cast<std::int64_t>(sums[0])},
                             {"error_before", sums[1]},
                             {"error_after", sums[2]}};
    clock_.count("solve", 2.0 * kClipCandidates *
                              static_cast<double>(linear.rows * linear.cols * linear.group_size));
  }

  // The record is of the whole block, whoever gathered the statistics.
  void count_statistics(int passes) {
    for (std::size_t g = 0; g < statistics_->inputs.size(); ++g) {
      const auto n = static_cast<double>(task_.decoder.shared_inputs()[g].cols);
      if (statistics_->inputs[g].has_gram)
        clock_.count("gram", static_cast<double>(statistics_->tokens) * n * n);
    }
    const auto tokens = static_cast<double>(task_.samples->count() * task_.samples->length());
    for (const LinearSpec& spec : task_.decoder.linears()) {
      clock_.count("forward", 2.0 * passes * tokens * static_cast<double>(spec.rows * spec.cols));
    }
  }

  BlockTask& task_;
  const AwqSettings& settings_;
  PhaseClock clock_;
  const BlockStatistics* statistics_ = nullptr;
};

// A pass over the stream for statistics, and another for the search of what is not judged by a Gram matrix.
BlockCost cost_of(const BlockSizes& sizes, DType activations, const AwqSettings& settings,
                  MadeBefore made) {
  const double points = settings.grid_points;
  const std::vector<ScaleSet> sets =
      settings.scale_search ? sizes.block.scale_sets() : std::vector<ScaleSet>{};
  const auto by_gram = [&](const ScaleSet& set) {
    const SharedInput& input = sizes.block.shared_inputs()[set.group];
    return is_judged_by_gram(set, input.cols, sizes.tokens, activations);
  };
  const double passes = (std::ranges::all_of(sets, by_gram) ? 0 : 1) + (made.gathered ? 0 : 1);
  const std::string gram_search = gram_search_phase(activations);
  BlockCost cost{.flops = {},
                 .bytes_up = passes * sizes.stream_bytes(),
                 .bytes_down = made.original ? 0 : sizes.stream_bytes()};
  cost.flops["forward"] = 2 * passes * sizes.tokens * sizes.all_weights();
  std::set<int> with_gram;
  for (const ScaleSet& set : sets) {
    const auto first = static_cast<std::size_t>(set.group),
               last = static_cast<std::size_t>(set.last_group);
    const SharedInput& group = sizes.block.shared_inputs()[first];
    if (by_gram(set)) {
      with_gram.insert(set.group);
      cost.flops[gram_search] += 2 * points * sizes.weights(first, last) * sizes.cols(group);
    } else {
      cost.flops["search"] +=
          sizes.tokens * search_operations(set, points) * sizes.weights(first, last);
    }
  }
  for (const int g : with_gram) {
    const double n = sizes.cols(sizes.block.shared_inputs()[g]);
    if (!made.gathered) cost.flops["gram"] += sizes.tokens * n * n;
  }
  cost.attention["forward"] = passes * sizes.attention();
  cost.cuts["solve"] = sizes.tiles();
  cost.rounded = sizes.all_weights();
  sizes.share_codes(cost.traffic, settings.scheme.group_size);
  cost.traffic.rounds = 6.0 * static_cast<double>(sizes.block.linears().size());
  std::vector<Cut> tiles;
  for (const ScaleSet& set : sets) {
    const SharedInput& group = sizes.block.shared_inputs()[set.group];
    for (const int linear : by_gram(set) ? group.linears : std::vector<int>()) {
      const double work = 2 * points * sizes.rows(linear) * sizes.cols(group) * sizes.cols(group);
      const int pieces = static_cast<int>((sizes.rows(linear) + kTileRows - 1) / kTileRows);
      tiles.push_back({work, pieces});
      cost.traffic.gathered += 8 * points * pieces;
    }
    if (made.gathered) continue;
    cost.traffic.sums.push_back({.tiles = {4 * sizes.cols(group)}, .first_owner = set.group});
    cost.traffic.shared += 4 * sizes.cols(group);
  }
  const auto modules_searched = static_cast<double>(
      std::ranges::count_if(sets, [&](const auto& set) { return !by_gram(set); }));
  cost.traffic.sums.push_back({.tiles = {8 * points * modules_searched}});
  cost.traffic.shared += 8 * points * modules_searched;
  for (const Cut& cut : tiles)
    cost.cuts[gram_search].push_back({cut.share / cost.flops[gram_search], cut.pieces});
  // In one phase with what goes by shards, it is a part of that.
  if (!tiles.empty() && gram_search == "search" && modules_searched > 0) {
    double by_tiles = 0;
    for (const Cut& cut : tiles) by_tiles += cut.share;
    cost.cuts["search"].insert(cost.cuts["search"].begin(),
                               {1 - by_tiles / cost.flops["search"], Cut::kShards});
  }
  // Each point of the grid rounds what it tries.
  if (!sets.empty()) cost.rounded += points * sizes.all_weights();
  for (std::size_t g = 0; g < sizes.block.shared_inputs().size(); ++g) {
    const std::int64_t n = sizes.block.shared_inputs()[g].cols;
    const auto add = [&](std::int64_t cols, ShardMatrixSum::Part part) {
      const double bytes = 4.0 * static_cast<double>(n * cols);
      std::vector<double> bands = ShardMatrixSum::bands(n, cols, part);
      cost.memory.summed += bytes;
      cost.memory.gathered = std::max(cost.memory.gathered, bytes);
      cost.memory.band = std::max(cost.memory.band, *std::ranges::max_element(bands));
      if (made.gathered) return;
      cost.traffic.sums.push_back(
          {.tiles = std::move(bands), .first_owner = static_cast<int>(g), .gathered = true});
      cost.traffic.shared += bytes;
    };
    if (with_gram.contains(static_cast<int>(g))) add(n, ShardMatrixSum::Part::kLowerTriangle);
    if (settings.clip_search) add(settings.scheme.group_size_for(n), ShardMatrixSum::Part::kWhole);
  }
  cost.memory.whole = cost.memory.summed;
  if (!settings.clip_search) return cost;
  for (const SharedInput& group : sizes.block.shared_inputs()) {
    const auto size = static_cast<double>(settings.scheme.group_size_for(group.cols));
    for (const int i : group.linears) {
      if (std::ranges::find(sizes.block.score_linears(), i) == sizes.block.score_linears().end()) {
        cost.traffic.gathered +=
            24.0 * static_cast<double>((static_cast<std::int64_t>(sizes.rows(i)) + kTileRows - 1) /
                                       kTileRows);
        cost.flops["solve"] += 2 * kClipCandidates * sizes.rows(i) * sizes.cols(group) * size;
      }
    }
  }
  return cost;
}

class Awq final : public Method {
 public:
  explicit Awq(const AwqSettings& settings) : settings_(settings) {}
  Needs needs() const override {
    return {.full_precision_stream = true, .gathers = awq_gathers(settings_)};
  }
  std::vector<LinearScheme> schemes() const override { return {settings_.scheme}; }
  BlockCost cost(const DecoderBlock& decoder, int samples, int length, DType activations,
                 MadeBefore made) const override {
    return awq_cost(decoder, samples, length, activations, settings_, made);
  }
  QuantizedBlock quantize(BlockTask& task) const override {
    return quantize_by_awq(task, settings_);
  }

 private:
  AwqSettings settings_;
};

}  // namespace

QuantizedBlock quantize_by_awq(BlockTask& task, const AwqSettings& settings) {
  return AwqQuantizer(task, settings).run();
}

BlockCost awq_cost(const DecoderBlock& decoder, int samples, int length, DType activations,
                   const AwqSettings& settings, MadeBefore made) {
  return cost_of({decoder, static_cast<double>(samples) * length, static_cast<double>(length)},
                 activations, settings, made);
}

void read_searches(OptionReader& options, AwqSettings& settings) {
  settings.scale_search = options.boolean("scale_search", true);
  settings.clip_search = options.boolean("clip_search", true);
  settings.grid_points = options.integer("grid_points", 20, 1, 1000);
  settings.clip_tokens = options.integer("clip_tokens", 512, 0, 1 << 30);
}

std::string awq_gathers(const AwqSettings& settings) {
  nlohmann::json key = {settings.scale_search};
  if (settings.clip_search) key.push_back({settings.scheme.group_size, settings.clip_tokens});
  return key.dump();
}

std::unique_ptr<Method> make_awq(OptionReader& options) {
  AwqSettings settings;
  settings.scheme =
      options.scheme({2, 3, 4, 5, 6, 7, 8}, Grid::kAsymAwq, Grid::kSymGptq,
                     {Grid::kAsymAwq, Grid::kAsymGptq, Grid::kSymGptq, Grid::kSymFull});
  options.one_of("preset", "paper", {"paper"});
  read_searches(options, settings);
  return std::make_unique<Awq>(settings);
}

}  // namespace roundhouse
