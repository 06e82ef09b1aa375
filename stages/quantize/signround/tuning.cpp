#include "stages/quantize/signround/tuning.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "base/error.h"
#include "comm/together.h"
#include "model/block/linear.h"
#include "model/block/model_units.h"
#include "stages/flow/micro_batch.h"
#include "stages/flow/phase_clock.h"
#include "stages/quantize/signround/batch.h"
#include "stages/quantize/signround/rounding.h"

namespace roundhouse {
namespace {

constexpr const char* kTuning = "tuning";  // attribute of what is saved

// A copy of this rank's shards, within the same budget.
Activations copy_of(const BlockTask& task, Activations& from) {
  Activations copy(task.budget, from.type(), from.cols());
  const PartRange shards = shards_of_rank(task);
  for (int shard = shards.begin; shard < shards.end; ++shard) {
    copy.reserve(shard, from.tokens(shard));
    std::ranges::copy(from.bytes(shard), copy.bytes(shard).begin());
  }
  return copy;
}

class BlockTuner {
 public:
  BlockTuner(BlockTask& task, const SignRoundSettings& settings)
      : task_(task), settings_(settings), clock_(task.backend) {
    require(task.samples && task.original, "SignRound needs samples and the full-precision stream");
    require(!settings.quantized_input || task.residual, "SignRound needs the quantized stream");
    // Else storing the residual would round it, and a resumed run would have other bits.
    require(task.original->type() == task.backend.activation_type(),
            "activations are kept in another type than the device computes with");
    const int samples = static_cast<int>(task.samples->count());
    samples_ = std::min(settings.samples, samples);
    batch_size_ = std::min(settings.batch_size, samples_);
    parts_ = parts_of_batch(batch_size_, task.samples->length());
    const int largest_part = (batch_size_ + parts_ - 1) / parts_;
    const std::size_t saved = task.decoder.saved_bytes(largest_part * task.samples->length(),
                                                       task.backend.activation_type());
    if (saved <= task.saved_activation_bytes) return;
    save_ = Save::kInputs;
    if (task.team.rank() == 0) {
      task.monitor.event({{"event", "activations computed again"},
                          {"block", task.block},
                          {"bytes", saved},
                          {"budget", task.saved_activation_bytes}});
    }
  }

  QuantizedBlock run() {
    // The streams of which batches are made. The targets are what the full-precision stream must be in the end.
    std::optional<Activations> kept;
    say("target");
    clock_.measure("target", [&] {
      Activations& target = task_.output_of_original();
      if (!settings_.quantized_input && &target == task_.original)
        kept.emplace(copy_of(task_, *task_.original));
      if (task_.makes_original()) run_forward(task_, task_.weights, *task_.original, target);
    });
    count("target", forward_flops() * all_tokens());  // the record is the same whoever made them
    Activations& input = kept                        ? *kept
                         : settings_.quantized_input ? *task_.residual
                                                     : *task_.original;

    std::optional<LearnedBlock> rounding;
    clock_.measure("round", [&] { rounding.emplace(task_, settings_.scheme); });
    LearnedBlock& learned = *rounding;
    tune(learned, input);

    QuantizedBlock block{.block = task_.block, .linears = {}, .record = record()};
    clock_.measure("gather", [&] { block.linears = learned.finish(); });
    if (!first_finite_) {
      for (QuantizedLinear& linear : block.linears) {
        if (!linear.original) linear.record["fallback"] = "rtn";
      }
      if (task_.team.rank() == 0) {
        task_.monitor.say(fmt::format("{}: no loss is finite; rounded to nearest instead",
                                      unit_name(task_.block, task_.decoder)));
      }
    }
    if (task_.residual) {
      say("output");
      clock_.measure("output", [&] { run_forward(task_, task_.weights, *task_.residual); });
      count("output", forward_flops() * all_tokens());
    }
    clock_.write(block.record);
    if (!task_.commits()) block.linears.clear();
    return block;
  }

 private:
  void tune(LearnedBlock& learned, Activations& input) {
    BatchSampler sampler(settings_.sampling, samples_, settings_.batch_size, settings_.seed,
                         task_.block);
    BatchLoader loader(task_, input, task_.output_of_original());
    int begin = 0;
    if (task_.progress) clock_.measure("resume", [&] { begin = resume(learned); });
    for (int i = 0; i < begin; ++i) {
      (void)sampler.next();
      count_step();  // the record is of the whole block, whoever made it
    }
    const auto fetch = [&] {
      clock_.measure("fetch", [&] { loader.fetch(sampler.next(), parts_); });
    };
    if (begin < settings_.iterations) fetch();
    for (int i = begin; i < settings_.iterations; ++i) {
      say(fmt::format("step {} of {}", i + 1, settings_.iterations));
      if (i + 1 < settings_.iterations) fetch();  // the next one, ahead
      clock_.measure("round", [&] { learned.round(); });
      BlockSum gradient(task_, parts_);
      const double loss = differentiate(loader, gradient);

      // The step after the last iteration would never be looked at.
      const bool last = i + 1 == settings_.iterations;
      if (!std::isfinite(loss)) {
        ++skipped_;
      } else {
        if (!first_finite_) first_finite_ = loss;
        const bool best = loss < best_loss_;
        if (best) {
          best_loss_ = loss;
          best_iteration_ = i;
        }
        if (settings_.best_loss && best) clock_.measure("keep", [&] { learned.keep(); });
        if (!last) {
          const double left = 1.0 - static_cast<double>(i) / settings_.iterations;
          clock_.measure("step", [&] {
            learned.step(std::move(gradient), static_cast<float>(settings_.rate * left),
                         static_cast<float>(settings_.range_rate * left));
          });
        }
      }
      if (last && (!settings_.best_loss || !first_finite_)) {
        clock_.measure("keep", [&] { learned.keep(); });
      }
      if (!last && task_.progress && task_.progress->due(learned.bytes()))
        clock_.measure("save", [&] { save(i + 1, learned); });
    }
  }

  // One part a tile, whoever has it.
  static std::string part_of(const RowTile& at) {
    return fmt::format("linear-{}-row-{}", at.linear, at.first);
  }

  void save(int step, const LearnedBlock& learned) {
    say(fmt::format("saving step {}", step));
    const std::vector<RowTile> own = learned.own_tiles();
    std::vector<std::string> names;
    for (const RowTile& at : own) names.push_back(part_of(at));
    task_.progress->write(step, names, [&](std::size_t i) {
      Record record = learned.save(own[i]);
      record.attributes[kTuning] = {{"best_iteration", best_iteration_}, {"skipped", skipped_}};
      if (first_finite_) {
        record.attributes[kTuning]["first"] = *first_finite_;
        record.attributes[kTuning]["best"] = best_loss_;
      }
      return record;
    });
  }

  // Steps that were done before: 0, or as many as were saved.
  int resume(LearnedBlock& learned) {
    std::vector<std::string> names;
    for (const auto& tiles : learned_tiles(task_)) {
      for (const RowTile& at : tiles) names.push_back(part_of(at));
    }
    const std::optional<int> step = task_.progress->newest(names);
    if (!step) return 0;
    say(fmt::format("reading step {}", *step));
    std::string tuning;  // the team's rank 0 has the first tile
    for (const RowTile& at : learned.own_tiles()) {
      const Record record = task_.progress->load(*step, part_of(at));
      learned.restore(at, record);
      tuning = record.attributes.at(kTuning).dump();
      task_.monitor.tick();
    }
    const auto state = nlohmann::json::parse(share(task_.team, std::move(tuning)));
    best_iteration_ = state.at("best_iteration").get<int>();
    skipped_ = state.at("skipped").get<int>();
    if (state.contains("first")) {
      first_finite_ = state.at("first").get<double>();
      best_loss_ = state.at("best").get<double>();
    }
    return *step;
  }

  // Forward and backward through this rank's parts of the batch. Returns the whole batch's loss.
  double differentiate(BatchLoader& loader, BlockSum& gradient) {
    const std::int64_t length = task_.samples->length();
    const double elements = static_cast<double>(batch_size_) * static_cast<double>(length) *
                            static_cast<double>(task_.decoder.hidden_size());
    const PartRange mine = parts_of_rank(parts_, task_.team.rank(), task_.team.size());
    std::vector<double> errors;
    for (int p = mine.begin; p < mine.end; ++p) {
      BatchPart part;
      clock_.measure("fetch", [&] { part = loader.next(); });
      BlockState state{.residual = std::move(part.input),
                       .input = {},
                       .sequences = part.sequences,
                       .length = length};
      SavedActivations saved;
      clock_.measure("forward", [&] {
        saved = task_.decoder.forward_saving(task_.weights, state, save_, task_.backend);
      });
      Tensor dy = std::move(state.residual);
      clock_.measure("loss", [&] {
        errors.push_back(
            task_.backend.squared_error({.y = std::as_const(dy).view(),
                                         .target = std::as_const(part.target).view(),
                                         .dy = dy.view(),
                                         .scale = static_cast<float>(2.0 / elements)}));
      });
      part.target = {};
      clock_.measure("backward", [&] {
        (void)task_.decoder.backward(
            task_.weights, std::move(saved), std::move(dy),
            [&](int linear, const LinearGradient& of) {
              if (task_.skips(static_cast<std::size_t>(linear))) return;
              gradient.add(p, linear, weight_gradient(of.dy.view(), of.x.view(), task_.backend));
            },
            DecoderBlock::InputGradient::kNo, task_.backend);
      });
      task_.monitor.tick();
    }
    count_step();

    std::vector<std::vector<std::byte>> messages;
    clock_.measure("loss",
                   [&] { messages = task_.team.all_gather(std::as_bytes(std::span(errors))); });
    double sum = 0.0;  // over parts in order: ranks hold runs of them
    for (const std::vector<std::byte>& message : messages) {
      std::vector<double> theirs(message.size() / sizeof(double));
      std::ranges::copy(message, std::as_writable_bytes(std::span(theirs)).begin());
      for (const double error : theirs) sum += error;
    }
    return sum / elements;
  }

  nlohmann::json record() const {
    nlohmann::json record = {
        {"iterations", settings_.iterations}, {"samples", samples_}, {"batch_size", batch_size_}};
    if (first_finite_) {
      record["loss"] = {
          {"first", *first_finite_}, {"best", best_loss_}, {"best_iteration", best_iteration_}};
    }
    if (skipped_ > 0) record["skipped_steps"] = skipped_;
    return record;
  }

  // A token's, of the linears.
  double forward_flops() const {
    double weights = 0.0;
    for (const LinearSpec& linear : task_.decoder.linears()) {
      weights += static_cast<double>(linear.rows * linear.cols);
    }
    return 2.0 * weights;
  }
  // As many for the weights' gradients, and for those of the inputs but the block's own.
  double backward_flops() const {
    double inner = 0.0;
    const auto& groups = task_.decoder.shared_inputs();
    for (std::size_t g = 1; g < groups.size(); ++g) {
      for (const int i : groups[g].linears) {
        const LinearSpec& linear = task_.decoder.linears()[i];
        inner += static_cast<double>(linear.rows * linear.cols);
      }
    }
    return forward_flops() + 2.0 * inner;
  }
  void count_step() {
    const double tokens =
        static_cast<double>(batch_size_) * static_cast<double>(task_.samples->length());
    count("forward", forward_flops() * tokens);
    count("backward", backward_flops() * tokens);
  }
  double all_tokens() const {
    return static_cast<double>(task_.samples->count() * task_.samples->length());
  }
  void count(const char* part, double flops) { clock_.count(part, flops); }
  void say(const std::string& what) {
    task_.monitor.phase(
        fmt::format("{}: SignRound, {}", unit_name(task_.block, task_.decoder), what));
  }

  BlockTask& task_;
  const SignRoundSettings& settings_;
  PhaseClock clock_;
  int samples_ = 0, batch_size_ = 0, parts_ = 0;
  Save save_ = Save::kAll;
  std::optional<double> first_finite_;
  double best_loss_ = std::numeric_limits<double>::infinity();
  int best_iteration_ = -1;
  int skipped_ = 0;
};

}  // namespace

QuantizedBlock tune_block(BlockTask& task, const SignRoundSettings& settings) {
  return BlockTuner(task, settings).run();
}

}  // namespace roundhouse
