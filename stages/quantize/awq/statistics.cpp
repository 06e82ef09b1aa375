#include "stages/quantize/awq/statistics.h"

#include <algorithm>
#include <memory>
#include <set>
#include <utility>

#include <fmt/format.h>

#include "model/block/model_units.h"
#include "stages/flow/dropped_samples.h"
#include "stages/flow/micro_batch.h"
#include "stages/flow/shard_sum.h"

namespace roundhouse {
namespace {

using Part = ShardMatrixSum::Part;

// Sizes of the groups of weights that are clipped.
std::set<std::int64_t> clipped_sizes(const BlockTask& task, const AwqSettings& settings,
                                     const SharedInput& group) {
  std::set<std::int64_t> sizes;
  for (const int i : group.linears) {
    const LinearScheme scheme = settings.scheme_of(task, i);
    if (!scheme.is_original()) sizes.insert(scheme.group_size_for(group.cols));
  }
  return sizes;
}

// The sums over the inputs of one group.
class InputSums {
 public:
  InputSums(const BlockTask& task, const AwqSettings& settings, int group)
      : task_(task), group_(task.decoder.shared_inputs()[group]), owner_(group % task.team.size()) {
    const auto sum = [&](std::int64_t rows, std::int64_t cols, Part part) {
      return std::make_unique<ShardMatrixSum>(task.device_team, task.backend,
                                              task.samples->shards(), rows, cols, part);
    };
    for (const ScaleSet& set : task.decoder.scale_sets()) {
      if (!settings.scale_search || set.group != group) continue;
      magnitude_ = sum(1, group_.cols, Part::kWhole);
      if (is_judged_by_gram(task, set)) gram_ = sum(group_.cols, group_.cols, Part::kLowerTriangle);
    }
    if (!settings.clip_search) return;
    for (const std::int64_t size : clipped_sizes(task, settings, group_))
      group_grams_[size] = sum(group_.cols, size, Part::kWhole);
    const std::int64_t tokens = task.samples->count() * task.samples->length();
    if (settings.clip_tokens > 0) {
      every_ = std::max<std::int64_t>(1, tokens / settings.clip_tokens);
    }
  }

  void begin_shard() {
    for (auto* sum : all()) sum->begin_shard();
  }
  // Rows of x are consecutive tokens, the first of which is number `first_token` of all.
  void add(ConstMatrix x, std::int64_t first_token) {
    if (magnitude_) task_.backend.column_magnitudes({.x = x, .sums = magnitude_->matrix()});
    if (gram_) task_.backend.gram({.x = x, .h = gram_->matrix()});
    if (group_grams_.empty()) return;
    // Every so many tokens, counted over all samples: a view of x with longer strides.
    const std::int64_t skip = (every_ - first_token % every_) % every_;
    if (skip >= x.rows) return;
    ConstMatrix sampled = x.row_range(skip, x.rows);
    sampled.rows = (sampled.rows + every_ - 1) / every_;
    sampled.stride *= every_;
    for (const auto& [size, grams] : group_grams_)
      task_.backend.group_grams({.x = sampled, .group_size = size, .grams = grams->matrix()});
  }
  void end_shard(int shard) {
    for (auto* sum : all()) sum->end_shard(shard);
  }

  InputStatistics finish(std::int64_t tokens) {
    InputStatistics statistics;
    if (magnitude_) {
      const Tensor sums = everywhere(*magnitude_, 1, group_.cols, false);
      HostTensor host(DType::kF32, {group_.cols});
      task_.backend.download(sums.f32(), host.bytes());
      for (const float sum : host.as<float>()) {
        statistics.magnitude.push_back(static_cast<double>(sum) / static_cast<double>(tokens));
      }
    }
    statistics.has_gram = gram_ != nullptr;
    if (gram_) statistics.gram = everywhere(*gram_, group_.cols, group_.cols, true);
    for (const auto& [size, grams] : group_grams_)
      statistics.group_grams[size] = everywhere(*grams, group_.cols, size, false);
    return statistics;
  }

 private:
  std::vector<ShardMatrixSum*> all() {
    std::vector<ShardMatrixSum*> sums;
    for (const auto* sum : {&magnitude_, &gram_}) {
      if (*sum) sums.push_back(sum->get());
    }
    for (const auto& [size, sum] : group_grams_) sums.push_back(sum.get());
    return sums;
  }
  Tensor everywhere(ShardMatrixSum& sum, std::int64_t rows, std::int64_t cols, bool symmetric) {
    Tensor matrix = sum.finish(owner_);
    if (symmetric && !matrix.empty()) task_.backend.symmetrize(matrix.view());
    share(matrix, rows, cols, owner_, task_.device_team, task_.backend, task_.monitor);
    return matrix;
  }

  const BlockTask& task_;
  const SharedInput& group_;
  int owner_;
  std::int64_t every_ = 1;  // of how many tokens one is sampled
  std::unique_ptr<ShardMatrixSum> magnitude_, gram_;
  std::map<std::int64_t, std::unique_ptr<ShardMatrixSum>> group_grams_;  // by group size
};

}  // namespace

BlockStatistics collect_statistics(const BlockTask& task, const AwqSettings& settings,
                                   bool store_output, PhaseClock& clock) {
  task.monitor.phase(
      fmt::format("{}: statistics of the inputs", unit_name(task.block, task.decoder)));
  const int groups = static_cast<int>(task.decoder.shared_inputs().size());
  std::vector<std::unique_ptr<InputSums>> sums;
  for (int g = 0; g < groups; ++g) {
    sums.push_back(std::make_unique<InputSums>(task, settings, g));
  }

  BlockStatistics statistics;
  const auto add_batch = [&](const MicroBatch& batch, Tensor residual) {
    std::vector<Tensor> inputs;
    std::vector<std::uint8_t> finite(static_cast<std::size_t>(batch.sequences), 1);
    const auto check = [&](ConstMatrix x) {
      std::vector<std::uint8_t> here(finite.size());
      task.backend.check_finite({.x = x, .rows_each = batch.length, .finite = here});
      for (std::size_t s = 0; s < finite.size(); ++s) finite[s] &= here[s];
    };
    clock.measure("forward", [&] {
      BlockState state = state_of(batch, std::move(residual));
      for (int g = 0; g < groups; ++g) {
        task.decoder.prepare(g, task.weights, state, task.backend);
        Tensor& input = inputs.emplace_back(task.backend, state.input.type(), state.input.rows(),
                                            state.input.cols());
        task.backend.copy(std::as_const(state.input).view(), input.view());
        check(std::as_const(input).view());
        task.decoder.apply(g, task.weights, state, task.backend);
      }
      check(std::as_const(state.residual).view());
      if (store_output) {
        task.output_of_original().store_behind(batch.shard, batch.first_row, state.residual.view(),
                                               task.backend);
      }
    });
    clock.measure("gram", [&] {
      for (std::size_t g = 0; g < inputs.size(); ++g) {
        for_each_finite_run(finite, [&](std::int64_t begin, std::int64_t end) {
          sums[g]->add(
              std::as_const(inputs[g]).view().row_range(begin * batch.length, end * batch.length),
              (batch.first_sample + begin) * batch.length);
        });
      }
    });
    for (std::int64_t s = 0; s < batch.sequences; ++s) {
      if (!finite[s]) {
        statistics.dropped.push_back(batch.first_sample + s);
      }
    }
  };

  for_each_micro_batch(
      task, {task.original},
      {.begin =
           [&](int) {
             for (const auto& sum : sums) sum->begin_shard();
           },
       .visit = [&](const MicroBatch& batch,
                    std::vector<Tensor> rows) { add_batch(batch, std::move(rows.front())); },
       .end =
           [&](int shard) {
             clock.measure("gram", [&] {
               for (const auto& sum : sums) sum->end_shard(shard);
             });
           }});

  clock.measure("forward", [&] { task.backend.finish_downloads(); });

  const std::int64_t used =
      settle_dropped(task, "all linears", statistics.dropped, statistics.record);
  statistics.tokens = used * task.samples->length();
  clock.measure("gram", [&] {
    for (const auto& sum : sums) statistics.inputs.push_back(sum->finish(statistics.tokens));
  });
  return statistics;
}

std::string statistics_key(const BlockTask& task, const AwqSettings& settings) {
  nlohmann::json key = {"awq statistics", settings.scale_search};
  if (!settings.clip_search) return key.dump();
  key.push_back(settings.clip_tokens);
  for (const SharedInput& group : task.decoder.shared_inputs())
    key.push_back(clipped_sizes(task, settings, group));
  return key.dump();
}

}  // namespace roundhouse
