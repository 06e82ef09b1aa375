#include "stages/quantize/awq/search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include "base/error.h"
#include "model/block/model_units.h"
#include "stages/flow/micro_batch.h"
#include "stages/flow/shard_sum.h"
#include "stages/quantize/row_tiles.h"

namespace roundhouse {
namespace {

// The candidates of one set, on the device.
struct Candidates {
  const ScaleSet* set;
  std::vector<std::vector<float>> scales;
  std::vector<Tensor> rows;
  std::vector<double> losses;  // sums of squared errors
  bool skipped = false;        // see touches_skipped()
};

class Search {
 public:
  Search(BlockTask& task, const AwqSettings& settings, const BlockStatistics& statistics,
         PhaseClock& clock)
      : task_(task), settings_(settings), statistics_(statistics), clock_(clock) {
    for (const ScaleSet& set : task.decoder.scale_sets()) {
      Candidates candidates{.set = &set, .scales = {}, .rows = {}, .losses = {}};
      candidates.skipped = touches_skipped(set);
      for (int i = 0; !candidates.skipped && i < settings.grid_points; ++i) {
        candidates.scales.push_back(candidate_scales(
            input_of(set).magnitude, static_cast<double>(i) / settings.grid_points));
        candidates.rows.push_back(upload_row(candidates.scales.back(), task.backend));
      }
      sets_.push_back(std::move(candidates));
    }
  }

  std::vector<ChosenScales> run() {
    for (Candidates& candidates : sets_) {
      if (by_gram(candidates) && !candidates.skipped) judge_by_gram(candidates);
    }
    if (!std::ranges::all_of(sets_, [this](const auto& c) { return by_gram(c); }))
      judge_by_forward();
    std::vector<ChosenScales> chosen;
    for (const Candidates& candidates : sets_) chosen.push_back(choose(candidates));
    return chosen;
  }

 private:
  const SharedInput& group(int g) const { return task_.decoder.shared_inputs()[g]; }
  const InputStatistics& input_of(const ScaleSet& set) const {
    return statistics_.inputs[set.group];
  }
  std::string text_of(const ScaleSet& set) const {
    return fmt::format("{}: scales of {}", unit_name(task_.block, task_.decoder),
                       group(set.group).name);
  }

  bool by_gram(const Candidates& candidates) const {
    return is_judged_by_gram(task_, *candidates.set);
  }

  // Scales would change a linear that is to stay as it is.
  bool touches_skipped(const ScaleSet& set) const {
    const auto skips = [this](int i) { return task_.skips(static_cast<std::size_t>(i)); };
    return std::ranges::any_of(group(set.group).linears, skips) ||
           (set.linear >= 0 && skips(set.linear));
  }

  void judge_by_gram(Candidates& candidates) {
    const ScaleSet& set = *candidates.set;
    task_.monitor.phase(text_of(set));
    const Tensor& gram = input_of(set).gram;
    candidates.losses.assign(candidates.rows.size(), 0.0);
    const std::string phase = gram_search_phase(task_.backend.activation_type());
    clock_.measure(phase, [&] {
      for (const int i : group(set.group).linears) {
        const Tensor& weights = task_.weights.linears[i];
        const std::vector<double> sums = sum_over_tiles(
            task_.team, weights.rows(), candidates.rows.size(),
            [&](std::int64_t first, std::int64_t rows) {
              task_.monitor.tick();
              return losses_of_tile(tile_weights(weights, first, rows, task_.backend), gram,
                                    candidates, settings_.scheme_of(task_, i));
            });
        for (std::size_t c = 0; c < sums.size(); ++c) candidates.losses[c] += sums[c];
        const auto n = static_cast<double>(weights.cols());
        clock_.count(phase, 2.0 * static_cast<double>(settings_.grid_points) *
                                static_cast<double>(weights.rows()) * n * n);
      }
    });
  }

  // For each candidate: the sum over the tile's rows of Δ G Δᵀ.
  std::vector<double> losses_of_tile(const Tensor& w, const Tensor& gram,
                                     const Candidates& candidates, const LinearScheme& scheme) {
    Tensor delta(task_.backend, DType::kF32, w.rows(), w.cols());
    Tensor product(task_.backend, DType::kF32, w.rows(), w.cols());
    Tensor sums(task_.backend, DType::kF32, w.rows(), 1);
    std::vector<double> losses;
    for (const Tensor& s : candidates.rows) {
      task_.backend.scaled_rounding({.w = w.view(),
                                     .column_scales = s.view(),
                                     .group_size = scheme.group_size_for(w.cols()),
                                     .grid = scheme.grid,
                                     .bits = scheme.bits,
                                     .error = true,
                                     .out = delta.view()});
      task_.backend.matmul(
          {.a = std::as_const(delta).view(), .b = gram.view(), .c = product.view()});
      task_.backend.compare_rows({.a = std::as_const(delta).view(),
                                  .b = std::as_const(product).view(),
                                  .product = true,
                                  .sums = sums.view()});
      losses.push_back(total(sums, {}));
    }
    return losses;
  }

  // The sum of a column of F32, over the rows of samples that are not dropped.
  double total(const Tensor& sums, const std::vector<MicroBatch>& batches) {
    std::vector<float> values(static_cast<std::size_t>(sums.rows()));
    task_.backend.download(sums.f32(), std::as_writable_bytes(std::span(values)));
    double sum = 0.0;
    std::size_t row = 0;
    for (const MicroBatch& batch : batches) {
      for (std::int64_t sample = batch.first_sample; sample < batch.first_sample + batch.sequences;
           ++sample) {
        const bool dropped =
            std::ranges::find(statistics_.dropped, sample) != statistics_.dropped.end();
        for (std::int64_t token = 0; token < batch.length; ++token, ++row) {
          if (!dropped) sum += static_cast<double>(values[row]);
        }
      }
    }
    for (; row < values.size(); ++row) sum += static_cast<double>(values[row]);
    return sum;
  }

  // One pass over the samples for all other sets.
  void judge_by_forward() {
    // So many micro-batches go through a candidate's weights at once: rounding them is then little beside using them.
    constexpr std::size_t kTogether = 8;
    std::vector<Candidates*> modules;
    for (Candidates& candidates : sets_) {
      if (!by_gram(candidates) && !candidates.skipped) modules.push_back(&candidates);
    }
    if (modules.empty() && !task_.makes_original()) return;
    const std::size_t points = static_cast<std::size_t>(settings_.grid_points);
    ShardNumberSum sum(task_, modules.size() * points);
    const PartRange shards = shards_of_rank(task_);
    for (int shard = shards.begin; shard < shards.end; ++shard) {
      for (Candidates* module : modules) module->losses.assign(points, 0.0);
      const std::vector<MicroBatch> batches = micro_batches_of_shard(*task_.samples, shard);
      BatchReader reader(batches, {task_.original}, task_.backend);
      for (std::size_t begin = 0; begin < batches.size(); begin += kTogether) {
        const auto first = batches.begin() + static_cast<std::ptrdiff_t>(begin);
        const auto count = std::min(kTogether, batches.size() - begin);
        pass(modules, {first, first + static_cast<std::ptrdiff_t>(count)}, reader);
      }
      std::vector<double> losses;
      for (const Candidates* module : modules) {
        losses.insert(losses.end(), module->losses.begin(), module->losses.end());
      }
      if (!modules.empty()) sum.add(shard, std::move(losses));
    }
    if (modules.empty()) return;  // the pass made the block's output
    const std::vector<double> losses = sum.finish();
    for (std::size_t m = 0; m < modules.size(); ++m) {
      const auto begin = losses.begin() + static_cast<std::ptrdiff_t>(m * points);
      modules[m]->losses.assign(begin, begin + static_cast<std::ptrdiff_t>(points));
      count_forward(*modules[m]->set);
    }
  }

  // A few micro-batches through the block, with a stop before each module that is searched.
  void pass(const std::vector<Candidates*>& modules, const std::vector<MicroBatch>& batches,
            BatchReader& reader) {
    std::vector<BlockState> states;
    for (const MicroBatch& batch : batches) {
      states.push_back(state_of(batch, std::move(reader.next().front())));
    }
    for (int g = 0; g < static_cast<int>(task_.decoder.shared_inputs().size()); ++g) {
      clock_.measure("forward", [&] {
        for (BlockState& state : states) {
          task_.decoder.prepare(g, task_.weights, state, task_.backend);
        }
      });
      for (Candidates* module : modules) {
        if (module->set->group == g) {
          clock_.measure("search", [&] {
            if (is_linear(*module->set)) {
              judge_linears(*module, states, batches);
            } else {
              judge(*module, states, batches);
            }
          });
        }
      }
      clock_.measure("forward", [&] {
        for (BlockState& state : states) {
          task_.decoder.apply(g, task_.weights, state, task_.backend);
          task_.monitor.tick();
        }
      });
    }
    for (std::size_t b = 0; b < batches.size() && task_.makes_original(); ++b) {
      task_.output_of_original().store_behind(batches[b].shard, batches[b].first_row,
                                              states[b].residual.view(), task_.backend);
    }
    clock_.measure("forward", [&] { task_.backend.finish_downloads(); });
  }

  void judge(Candidates& candidates, const std::vector<BlockState>& states,
             const std::vector<MicroBatch>& batches) {
    const ScaleSet& set = *candidates.set;
    task_.monitor.phase(text_of(set));
    std::vector<Tensor> original;
    std::int64_t rows = 0;
    for (const BlockState& state : states) {
      original.push_back(module_output(set, state));
      rows += original.back().rows();
    }
    Tensor sums(task_.backend, DType::kF32, rows, 1);
    const std::vector<int>& linears = group(set.group).linears;
    for (std::size_t c = 0; c < candidates.rows.size(); ++c) {
      std::vector<Tensor> kept;
      for (const int i : linears) {
        Tensor& weights = task_.weights.linears[i];
        kept.push_back(rounded(weights, candidates.rows[c], settings_.scheme_of(task_, i)));
        std::swap(kept.back(), weights);
      }
      std::int64_t row = 0;
      for (std::size_t b = 0; b < states.size(); ++b) {
        const Tensor output = module_output(set, states[b]);
        task_.backend.compare_rows({.a = std::as_const(original[b]).view(),
                                    .b = output.view(),
                                    .sums = sums.view().row_range(row, row + output.rows())});
        row += output.rows();
        task_.monitor.tick();
      }
      for (std::size_t i = 0; i < linears.size(); ++i) {
        std::swap(kept[i], task_.weights.linears[linears[i]]);
      }
      candidates.losses[c] += total(sums, batches);
    }
  }

  // Of linears by themselves: what their outputs change by, x Δᵀ, with sums in F32.
  void judge_linears(Candidates& candidates, const std::vector<BlockState>& states,
                     const std::vector<MicroBatch>& batches) {
    const ScaleSet& set = *candidates.set;
    task_.monitor.phase(text_of(set));
    std::int64_t rows = 0;
    for (const BlockState& state : states) rows += state.input.rows();
    Tensor sums(task_.backend, DType::kF32, rows, 1);
    for (const int i : group(set.group).linears) {
      const Tensor& weights = task_.weights.linears[i];
      for (std::size_t c = 0; c < candidates.rows.size(); ++c) {
        const Tensor delta =
            rounded(weights, candidates.rows[c], settings_.scheme_of(task_, i), /*error=*/true);
        std::int64_t row = 0;
        for (const BlockState& state : states) {
          const std::int64_t count = state.input.rows();
          Tensor change(task_.backend, DType::kF32, count, weights.rows());
          task_.backend.matmul({.a = state.input.view(),
                                .b = delta.view(),
                                .transpose_b = true,
                                .c = change.view(),
                                .of_activations = true});
          task_.backend.compare_rows({.a = std::as_const(change).view(),
                                      .b = std::as_const(change).view(),
                                      .product = true,
                                      .sums = sums.view().row_range(row, row + count)});
          row += count;
          task_.monitor.tick();
        }
        candidates.losses[c] += total(sums, batches);
      }
    }
  }

  Tensor rounded(const Tensor& weights, const Tensor& s, const LinearScheme& scheme,
                 bool error = false) {
    Tensor out(task_.backend, weights.type(), weights.rows(), weights.cols());
    task_.backend.scaled_rounding({.w = weights.view(),
                                   .column_scales = s.view(),
                                   .group_size = scheme.group_size_for(weights.cols()),
                                   .grid = scheme.grid,
                                   .bits = scheme.bits,
                                   .error = error,
                                   .out = out.view()});
    return out;
  }

  // What the groups of the module add to the residual, for the input that the state has. The state stays as it is.
  Tensor module_output(const ScaleSet& set, const BlockState& state) {
    BlockState inside{
        .residual = Tensor(task_.backend, state.residual.type(), state.residual.rows(),
                           state.residual.cols()),
        .input = Tensor(task_.backend, state.input.type(), state.input.rows(), state.input.cols()),
        .sequences = state.sequences,
        .length = state.length};
    task_.backend.zero(inside.residual.view());
    task_.backend.copy(state.input.view(), inside.input.view());
    for (int g = set.group; g <= set.last_group; ++g) {
      require(g == set.group || !group(g).from_residual, "a module that reads the residual twice");
      if (g > set.group) task_.decoder.prepare(g, task_.weights, inside, task_.backend);
      task_.decoder.apply(g, task_.weights, inside, task_.backend);
    }
    return std::move(inside.residual);
  }

  void count_forward(const ScaleSet& set) {
    const auto tokens = static_cast<double>(task_.samples->count() * task_.samples->length());
    for (int g = set.group; g <= set.last_group; ++g) {
      for (const int i : group(g).linears) {
        const LinearSpec& spec = task_.decoder.linears()[i];
        clock_.count("search", tokens * search_operations(set, settings_.grid_points) *
                                   static_cast<double>(spec.rows * spec.cols));
      }
    }
  }

  ChosenScales choose(const Candidates& candidates) {
    const ScaleSet& set = *candidates.set;
    if (candidates.skipped) {
      ChosenScales none;
      none.s.assign(static_cast<std::size_t>(group(set.group).cols), 1.0f);
      none.record = {{"linears", group(set.group).name}, {"skipped", true}};
      return none;
    }
    std::int64_t outputs = 0;
    for (const int i : group(set.last_group).linears) {
      outputs += task_.decoder.linears()[i].rows;
    }
    const auto count = static_cast<double>(statistics_.tokens * outputs);
    std::size_t best = candidates.losses.size();
    double least = std::numeric_limits<double>::infinity();
    for (std::size_t c = 0; c < candidates.losses.size(); ++c) {
      if (candidates.losses[c] < least) {  // not for NaN
        least = candidates.losses[c];
        best = c;
      }
    }
    const auto number = [&](double loss) {
      return std::isfinite(loss) ? nlohmann::json(loss / count) : nlohmann::json();
    };
    ChosenScales chosen;
    chosen.record = {{"linears", group(set.group).name},
                     {"loss_before", number(candidates.losses.front())}};
    if (best == candidates.losses.size()) {
      chosen.s.assign(candidates.scales.front().size(), 1.0f);
      chosen.record["ratio"] = 0.0;
      chosen.record["loss"] = nullptr;
      chosen.record["fallback"] = "no scaling";
      if (task_.team.rank() == 0) {
        task_.monitor.say(text_of(set) + ": no candidate has a finite loss: not scaled");
      }
      return chosen;
    }
    chosen.s = candidates.scales[best];
    chosen.record["ratio"] = static_cast<double>(best) / settings_.grid_points;
    chosen.record["loss"] = number(least);
    return chosen;
  }

  BlockTask& task_;
  const AwqSettings& settings_;
  const BlockStatistics& statistics_;
  PhaseClock& clock_;
  std::vector<Candidates> sets_;
};

}  // namespace

Tensor upload_row(std::span<const float> values, Backend& backend) {
  if (values.empty()) return {};
  Tensor row = Tensor::upload(backend, {DType::kF32, {std::ssize(values)}, std::as_bytes(values)},
                              DType::kF32);
  backend.sync();  // the values may end
  return row;
}

std::vector<float> candidate_scales(const std::vector<double>& magnitude, double ratio) {
  std::vector<double> s;
  for (const double a : magnitude) s.push_back(std::max(std::pow(a, ratio), 1e-4));
  const auto [lo, hi] = std::ranges::minmax(s);
  const double middle = std::sqrt(lo) * std::sqrt(hi);
  std::vector<float> scales;
  for (const double value : s) {
    const auto scale = static_cast<float>(value / middle);
    scales.push_back(std::isfinite(scale) && scale > 0 ? scale : 1.0f);
  }
  return scales;
}

std::vector<ChosenScales> search_scales(BlockTask& task, const AwqSettings& settings,
                                        const BlockStatistics& statistics, PhaseClock& clock) {
  return Search(task, settings, statistics, clock).run();
}

}  // namespace roundhouse
