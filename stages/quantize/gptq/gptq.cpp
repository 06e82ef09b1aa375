#include "stages/quantize/gptq/gptq.h"

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/error.h"
#include "model/block/model_units.h"
#include "stages/flow/block_sum.h"
#include "stages/flow/micro_batch.h"
#include "stages/flow/phase_clock.h"
#include "stages/quantize/gptq/factor.h"
#include "stages/quantize/gptq/hessian.h"
#include "stages/quantize/gptq/settings.h"
#include "stages/quantize/gptq/solve.h"

namespace roundhouse {
namespace {

// One block on its way through GPTQ.
class GptqQuantizer {
 public:
  GptqQuantizer(BlockTask& task, const GptqSettings& settings)
      : task_(task),
        settings_(settings),
        groups_(task.decoder.shared_inputs()),
        clock_(task.backend),
        linears_(task.decoder.linears().size()) {
    require(task.residual && task.samples, "GPTQ needs samples and their activations");
    // Else storing the residual between groups would round it, and a resumed run would have other bits.
    require(task.residual->type() == task.backend.activation_type(),
            "activations are kept in another type than the device computes with");
    require(!groups_.empty() && groups_.front().from_residual,
            "the first group of a block reads the residual");
    for (std::size_t i = 0; i < linears_.size(); ++i) {
      if (task.skips(i)) linears_[i] = kept_linear(task.decoder.linears()[i]);
    }
  }

  QuantizedBlock run() {
    record_ = nlohmann::json::object();
    if (settings_.true_sequential) {
      walk_staged();
    } else {
      walk_once();
    }
    clock_.write(record_);
    QuantizedBlock block{.block = task_.block, .linears = {}, .record = std::move(record_)};
    if (task_.commits()) block.linears = std::move(linears_);
    return block;
  }

 private:
  const SharedInput& group(int g) const { return groups_[g]; }
  int group_count() const { return static_cast<int>(groups_.size()); }
  // Whether any of its linears is to be quantized: else nobody asks for its Hessian.
  bool is_solved(int g) const {
    return std::ranges::any_of(group(g).linears, [this](int i) { return !linears_[i].original; });
  }
  std::string text_of(int g) const {
    return fmt::format("{}, {}", unit_name(task_.block, task_.decoder), group(g).name);
  }

  // Every micro-batch of this rank, with its rows of `from`; before and after each shard the collectors are told.
  void for_each_batch(const std::vector<HessianCollector*>& collectors,
                      std::vector<const Activations*> from,
                      const std::function<void(const MicroBatch&, std::vector<Tensor>)>& visit) {
    for_each_micro_batch(task_, std::move(from),
                         {.begin =
                              [&](int) {
                                for (HessianCollector* collector : collectors)
                                  collector->begin_shard();
                              },
                          .visit = visit,
                          .end =
                              [&](int shard) {
                                clock_.measure("gram", [&] {
                                  for (HessianCollector* collector : collectors)
                                    collector->end_shard(shard);
                                });
                              }});
    clock_.measure("forward", [&] { task_.backend.finish_downloads(); });
  }

  // What holds the state just before the linears of group g.
  std::vector<const Activations*> sources_of(int g) const {
    if (group(g).from_residual) return {task_.residual};
    return {task_.residual, carried_.get()};
  }
  BlockState state_before(int g, const MicroBatch& batch, std::vector<Tensor> rows) {
    BlockState state = state_of(batch, std::move(rows[0]));
    if (group(g).from_residual) {
      task_.decoder.prepare(g, task_.weights, state, task_.backend);
    } else {
      state.input = std::move(rows[1]);
    }
    return state;
  }

  // true_sequential: Hessian of group g from the groups before it as quantized, quantize g, go on. Between groups, `residual`
  // and `carried_` hold the state.
  void walk_staged() {
    for (int g = 0; g < group_count(); ++g) {
      std::optional<HessianCollector> collector;
      if (is_solved(g)) collector.emplace(task_, g, clock_);
      std::vector<HessianCollector*> collectors;
      if (collector) collectors.push_back(&*collector);
      task_.monitor.phase(text_of(g) + (collector ? ": Hessian" : ": left as it is"));
      std::unique_ptr<Activations> next;
      if (!group(g).from_residual) {
        next = std::make_unique<Activations>(task_.budget, task_.backend.activation_type(),
                                             group(g).cols, room_for(g));
      }
      const auto visit = [&](const MicroBatch& batch, std::vector<Tensor> rows) {
        BlockState state;
        clock_.measure("forward",
                       [&] { state = advance_to(g, batch, std::move(rows), next.get()); });
        if (collector) clock_.measure("gram", [&] { collector->add(state.input.view(), batch); });
      };
      for_each_batch(collectors, sources_of(std::max(0, g - 1)), visit);
      carried_ = std::move(next);
      if (g > 0) count_forward(g - 1);
      if (!collector) continue;
      // The Hessian is gone before solving begins: it is as large as its factor.
      HessianFactor factor = factor_of(g, collector->owner(), collector->finish(record_));
      quantize_group(g, std::move(factor), collector->owner());
    }
    if (!task_.decoder.flows()) return;
    task_.monitor.phase(fmt::format("{}: output", unit_name(task_.block, task_.decoder)));
    const int last = group_count() - 1;
    for_each_batch({}, sources_of(last), [&](const MicroBatch& batch, std::vector<Tensor> rows) {
      clock_.measure("forward", [&] {
        BlockState state = state_before(last, batch, std::move(rows));
        task_.decoder.apply(last, task_.weights, state, task_.backend);
        task_.residual->store_behind(batch.shard, batch.first_row, state.residual.view(),
                                     task_.backend);
      });
    });
    count_forward(last);
    carried_.reset();
  }

  // Of the device's memory, what its inputs may take: what its Hessian's sums and micro-batches leave, with a tenth to spare.
  Activations::OnDevice room_for(int g) const {
    if (task_.backend.is_host_memory()) return {};
    constexpr double kHessians = 8;
    const auto n = static_cast<double>(group(g).cols);
    const double room =
        0.9 * static_cast<double>(task_.backend.available_bytes()) - kHessians * 4 * n * n;
    return {&task_.backend, static_cast<std::size_t>(std::max(0.0, room))};
  }

  // Applies group g - 1, keeps what comes out, and leaves the input of group g in the state.
  BlockState advance_to(int g, const MicroBatch& batch, std::vector<Tensor> rows,
                        Activations* next) {
    BlockState state = state_before(std::max(0, g - 1), batch, std::move(rows));
    if (g > 0) task_.decoder.apply(g - 1, task_.weights, state, task_.backend);
    if (next) {  // the residual is as it was
      next->reserve(batch.shard, task_.residual->tokens(batch.shard));
      next->store_behind(batch.shard, batch.first_row, state.input.view(), task_.backend);
    } else if (g > 0) {
      task_.residual->store_behind(batch.shard, batch.first_row, state.residual.view(),
                                   task_.backend);
      task_.decoder.prepare(g, task_.weights, state, task_.backend);
    }
    return state;
  }

  // Not true_sequential: all Hessians from the original weights, then all groups, then the output from the block's input.
  void walk_once() {
    std::vector<std::unique_ptr<HessianCollector>> collectors;
    std::vector<HessianCollector*> all;
    for (int g = 0; g < group_count(); ++g) {
      collectors.push_back(is_solved(g) ? std::make_unique<HessianCollector>(task_, g, clock_)
                                        : nullptr);
      if (collectors.back()) all.push_back(collectors.back().get());
    }
    task_.monitor.phase(fmt::format("{}: Hessians", unit_name(task_.block, task_.decoder)));
    for_each_batch(all, {task_.residual}, [&](const MicroBatch& batch, std::vector<Tensor> rows) {
      BlockState state = state_of(batch, std::move(rows.front()));
      for (int g = 0; g < group_count(); ++g) {
        clock_.measure("forward", [&] {
          if (g > 0) task_.decoder.apply(g - 1, task_.weights, state, task_.backend);
          if (group(g).from_residual) task_.decoder.prepare(g, task_.weights, state, task_.backend);
        });
        HessianCollector* const collector = collectors[g].get();
        if (collector) clock_.measure("gram", [&] { collector->add(state.input.view(), batch); });
      }
    });
    for (int g = 0; g + 1 < group_count(); ++g) count_forward(g);

    // All sums before the first factorization, all factorizations before the first factor is shared: both are collective, and
    // owners of different groups work at the same time.
    std::vector<Tensor> hessians;
    for (const auto& collector : collectors)
      hessians.push_back(collector ? collector->finish(record_) : Tensor());
    std::vector<HessianFactor> factors;
    for (int g = 0; g < group_count(); ++g) {
      const auto index = static_cast<std::size_t>(g);
      factors.push_back(collectors[index]
                            ? factor_of(g, collectors[index]->owner(), hessians[index])
                            : HessianFactor());
      hessians[index] = {};
    }
    for (int g = 0; g < group_count(); ++g) {
      if (!collectors[g]) continue;
      const int owner = collectors[g]->owner();
      quantize_group(g, std::move(factors[g]), owner);
    }
    if (!task_.decoder.flows()) return;
    task_.monitor.phase(fmt::format("{}: output", unit_name(task_.block, task_.decoder)));
    clock_.measure("forward", [&] { run_forward(task_, task_.weights, *task_.residual); });
    for (int g = 0; g < group_count(); ++g) count_forward(g);
  }

  // At the owner; elsewhere nothing yet.
  HessianFactor factor_of(int g, int owner, const Tensor& hessian) {
    HessianFactor factor;
    if (task_.team.rank() == owner) {
      task_.monitor.phase(text_of(g) + ": factorization");
      clock_.measure("factor", [&] {
        factor = factorize(hessian, settings_.damping, settings_.act_order != ActOrder::kNone,
                           task_.backend, task_.monitor);
      });
    }
    return factor;
  }

  // Shares the factor, solves the group's linears and puts the result in place of the weights.
  void quantize_group(int g, HessianFactor factor, int owner) {
    clock_.measure("factor", [&] {
      share(factor, group(g).cols, owner, task_.team, task_.device_team, task_.backend,
            task_.monitor);
    });
    report(g, factor);
    const auto n = static_cast<double>(group(g).cols);
    clock_.count("factor", factor.tries * 2.0 * n * n * n / 3.0);

    for (const int i : group(g).linears) {
      const auto index = static_cast<std::size_t>(i);
      const LinearSpec& spec = task_.decoder.linears()[index];
      GptqSettings settings = settings_;
      settings.scheme = task_.scheme_of(index, settings_.scheme);
      if (settings.scheme.is_original()) continue;
      task_.monitor.phase(
          fmt::format("{}: solving {}", unit_name(task_.block, task_.decoder), spec.name));
      clock_.measure("solve", [&] {
        QuantizedLinear& linear = linears_[index];
        linear = solve_gptq(spec, task_.weights.linears[index], settings, factor, TeamSite(task_));
        report_rounded(linear);
        if (task_.decoder.flows()) task_.weights.linears[index] = dequantize(linear, task_.backend);
      });
      clock_.count("solve", static_cast<double>(spec.rows) * n * n);
      task_.monitor.tick();
    }
  }

  void report(int g, const HessianFactor& factor) {
    if (task_.team.rank() != 0 || factor.tries == 1) return;
    std::string line = text_of(g) + ": the Hessian is not positive definite";
    if (factor.status == FactorStatus::kNotFinite) {
      line = text_of(g) + ": the Hessian is not finite: rounded to nearest instead";
    } else if (factor.status == FactorStatus::kNotPositiveDefinite) {
      line += ", whatever the damping: rounded to nearest instead";
    } else {
      line += "; damping raised to " + nlohmann::json(factor.damping).dump();
      if (factor.diagonal_floor > 0) {
        line += " with a diagonal floor of " + nlohmann::json(factor.diagonal_floor).dump();
      }
    }
    task_.monitor.say(line);
  }

  void report_rounded(const QuantizedLinear& linear) {
    const auto rows = linear.record.value("rounded_rows", std::int64_t{0});
    if (task_.team.rank() != 0 || rows == 0) return;
    task_.monitor.say(fmt::format(
        "{}, {}: {} of {} rows would be further off than zeros: rounded to nearest instead",
        unit_name(task_.block, task_.decoder), linear.name, rows, linear.rows));
  }

  void count_forward(int g) {
    const auto tokens = static_cast<double>(task_.samples->count() * task_.samples->length());
    for (const int i : group(g).linears) {
      const LinearSpec& spec = task_.decoder.linears()[i];
      clock_.count("forward", 2.0 * tokens * static_cast<double>(spec.rows * spec.cols));
    }
  }

  BlockTask& task_;
  const GptqSettings& settings_;
  const std::vector<SharedInput>& groups_;
  PhaseClock clock_;
  std::vector<QuantizedLinear> linears_;
  nlohmann::json record_;
  std::unique_ptr<Activations>
      carried_;  // the input of the group at hand, if that is not from the residual
};

// Factorizations of one block that several ranks do at the same time take as long as the longest: the others count as if they
// were cut into so many pieces.
constexpr int kAtOnce = 1 << 20;

// The residual goes in for each group and out where it changes; the inputs that are no function of it are kept.
BlockCost gptq_cost(const BlockSizes& sizes, const GptqSettings& settings) {
  BlockCost cost{.flops = {}, .bytes_up = sizes.stream_bytes()};
  double widest = 0;
  for (const SharedInput& group : sizes.block.shared_inputs()) {
    const double n = sizes.cols(group), kept = kBytesOfActivation * sizes.tokens * n;
    cost.flops["gram"] += sizes.tokens * n * n;
    cost.flops["factor"] += 2 * n * n * n / 3;
    for (const int i : group.linears) {
      if (sizes.block.flows()) cost.flops["forward"] += 2 * sizes.tokens * sizes.rows(i) * n;
      cost.flops["solve"] += sizes.rows(i) * n * n;
    }
    cost.bytes_up += sizes.stream_bytes() + (group.from_residual ? 0 : kept);
    cost.bytes_down += group.from_residual ? 0 : kept + sizes.stream_bytes();
    // The Hessian's sum; what share() tells of its factor: a header of 24 bytes, order, diagonal and dead columns, the matrix.
    const int owner = static_cast<int>(cost.traffic.sums.size());
    const std::vector<double> bands = hessian_bands(group.cols);
    cost.traffic.sums.push_back({.tiles = bands, .first_owner = owner, .gathered = true});
    cost.memory.gathered = std::max(cost.memory.gathered, 4 * n * n);
    cost.memory.band = std::max(cost.memory.band, *std::ranges::max_element(bands));
    cost.traffic.shared += 24 + (8 + 4 + 1) * n + 4 * n * n;
    if (!group.from_residual) cost.memory.kept_cols = std::max(cost.memory.kept_cols, n);
    cost.memory.summed = settings.true_sequential ? std::max(cost.memory.summed, 4 * n * n)
                                                  : cost.memory.summed + 4 * n * n;
    widest = std::max(widest, n);
  }
  for (const SharedInput& group : sizes.block.shared_inputs()) {
    for (const int i : group.linears) {
      const double n = sizes.cols(group), work = sizes.rows(i) * n * n;
      cost.cuts["solve"].push_back({work / cost.flops["solve"],
                                    static_cast<int>((sizes.rows(i) + kTileRows - 1) / kTileRows)});
    }
    // One rank factorizes. Of several Hessians at once each has its rank: the widest takes longest.
    const double n = sizes.cols(group), work = 2 * n * n * n / 3 / cost.flops["factor"];
    if (settings.true_sequential || n < widest) {
      cost.cuts["factor"].push_back({work, settings.true_sequential ? 1 : kAtOnce});
    } else {
      cost.cuts["factor"].push_back({work, 1});
      widest = 1e300;
    }
  }
  if (!settings.true_sequential && sizes.block.flows()) {
    cost.flops["forward"] *= 2;
    for (const int i : sizes.block.shared_inputs().back().linears) {
      cost.flops["forward"] -=
          2 * sizes.tokens * sizes.rows(i) * sizes.cols(sizes.block.shared_inputs().back());
    }
    cost.memory.kept_cols = 0;
    cost.bytes_up = 2 * sizes.stream_bytes();
    cost.bytes_down = sizes.stream_bytes();
  }
  cost.attention["forward"] = sizes.attention() * (settings.true_sequential ? 1 : 2);
  cost.rounded = sizes.all_weights();
  sizes.share_codes(cost.traffic, settings.scheme.group_size);
  cost.traffic.rounds = 12.0 * static_cast<double>(sizes.block.shared_inputs().size());
  // At the owner: the Hessian, what is factorized, and its inverse.
  double largest = 0;
  for (const SharedInput& group : sizes.block.shared_inputs())
    largest = std::max(largest, 4 * sizes.cols(group) * sizes.cols(group));
  cost.memory.whole = 3 * largest;
  cost.memory.replaced = sizes.all_weights();
  return cost;
}

class Gptq final : public Method {
 public:
  explicit Gptq(const GptqSettings& settings) : settings_(settings) {}
  Needs needs() const override { return {.quantized_stream = true}; }
  std::string cannot_include(const std::string& outer_linear) const override {
    if (outer_linear == kOuterLinears.back()) return "";
    return "its inputs are one-hot, so that the Hessian is diagonal and gptq would do what "
           "rounding "
           "to nearest does: use method: rtn";
  }
  std::vector<LinearScheme> schemes() const override { return {settings_.scheme}; }
  BlockCost cost(const DecoderBlock& decoder, int samples, int length, DType,
                 MadeBefore) const override {
    return gptq_cost({decoder, static_cast<double>(samples) * length, static_cast<double>(length)},
                     settings_);
  }
  QuantizedBlock quantize(BlockTask& task) const override {
    return GptqQuantizer(task, settings_).run();
  }

 private:
  GptqSettings settings_;
};

}  // namespace

std::unique_ptr<Method> make_gptq(OptionReader& options) {
  GptqSettings settings;
  settings.scheme = options.scheme({2, 3, 4, 5, 6, 7, 8}, Grid::kAsymGptq, Grid::kSymGptq,
                                   {Grid::kAsymGptq, Grid::kSymGptq, Grid::kSymFull});
  settings.damping = options.number("damping", 0.01, 0.0, 1.0);
  const std::string order = options.one_of("act_order", "static", {"static", "dynamic", "none"},
                                           /*if_true=*/"static", /*if_false=*/"none");
  settings.act_order = order == "static"    ? ActOrder::kStatic
                       : order == "dynamic" ? ActOrder::kDynamic
                                            : ActOrder::kNone;
  settings.scheme.reordered = settings.act_order == ActOrder::kDynamic;
  settings.true_sequential = options.boolean("true_sequential", true);
  settings.clip_search = options.boolean("clip_search", false);
  return std::make_unique<Gptq>(settings);
}

}  // namespace roundhouse
