#include "stages/quantize/squeezellm/outlier_thresholds.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "base/error.h"
#include "base/numerical_error.h"
#include "comm/tree_sum.h"
#include "stages/flow/numerical_failures.h"
#include "stages/quantize/row_tiles.h"
#include "stages/quantize/squeezellm/outliers.h"

namespace roundhouse {
namespace {

class Thresholds {
 public:
  explicit Thresholds(ModelTask& task)
      : task_(task),
        blocks_(parts_of_rank(static_cast<int>(task.model.config().blocks), task.world.rank(),
                              task.world.size())) {}

  nlohmann::json find(double percent) {
    std::int64_t weights = 0;  // of the model
    for (int block = 0; block < task_.model.config().blocks; ++block) {
      for (std::size_t i = 0; i < task_.decoder.linears().size(); ++i) {
        const LinearSpec& spec = task_.decoder.linears()[i];
        if (!is_skipped(task_.overrides, task_.decoder, block, i)) weights += spec.rows * spec.cols;
      }
    }
    OutlierFactor factor(sensitive_rank(weights, percent));
    while (!factor.done()) {
      for_each_linear("outliers", [&](const LinearSpec& spec, const Tensor& matrix, std::size_t n) {
        if (skipped(n)) {  // its place is kept
          if (n == quartiles_.size()) quartiles_.push_back({});
          return;
        }
        // The first candidates are the same for all matrices: they are counted as soon as a matrix has its quartiles.
        if (n == quartiles_.size()) quartiles_.push_back(quartiles(spec, matrix));
        const std::vector<float> thresholds = factor.thresholds(quartiles_[n]);
        for_each_tile(matrix, [&](const Tensor& w) {
          task_.backend.count_large({.w = w.view(),
                                     .sensitivity = {},
                                     .sensitive_above = 0,
                                     .thresholds = thresholds,
                                     .counts = factor.counts()});
        });
      });
      failures_.agree(task_.world);
      add_over_ranks(task_.world, factor.counts());
      factor.end_round();
    }
    const nlohmann::json mine = thresholds_by_block(factor.value());
    failures_.agree(task_.world);
    return {{"factor", factor.value()},
            {"outliers", factor.outliers()},
            {"weights", weights},
            {"large_from", share_blocks(mine)}};
  }

 private:
  // n counts those of this rank's blocks.
  void for_each_linear(const std::string& what,
                       const std::function<void(const LinearSpec& spec, const Tensor& weights,
                                                std::size_t n)>& visit) {
    std::size_t n = 0;
    for (int block = blocks_.begin; block < blocks_.end; ++block) {
      task_.monitor.phase(fmt::format("block {}: {}", block, what));
      const BlockWeights weights =
          task_.decoder.load(task_.model.checkpoint(), block, task_.backend);
      for (std::size_t i = 0; i < weights.linears.size(); ++i) {
        const LinearSpec& spec = task_.decoder.linears()[i];
        at_linear(n, [&] { visit(spec, weights.linears[i], n); });
        ++n;
        task_.monitor.tick();
      }
    }
  }
  // The n-th linear of this rank's blocks: errors name it, and what is wrong with its numbers is kept for all ranks to agree on.
  void at_linear(std::size_t n, const std::function<void()>& work) {
    const std::size_t linears = task_.decoder.linears().size();
    const std::size_t block = static_cast<std::size_t>(blocks_.begin) + n / linears;
    const std::string place =
        fmt::format("block {}, {}", block, task_.decoder.linears()[n % linears].name);
    failures_.run(static_cast<std::int64_t>(block * linears + n % linears),
                  [&] { with_place_named(place, work); });
  }
  void for_each_tile(const Tensor& matrix, const std::function<void(const Tensor& w)>& visit) {
    for (std::int64_t first = 0; first < matrix.rows(); first += kTileRows) {
      visit(tile_weights(matrix, first, std::min(kTileRows, matrix.rows() - first), task_.backend));
    }
  }

  bool skipped(std::size_t n) const {
    const std::size_t linears = task_.decoder.linears().size();
    return is_skipped(task_.overrides, task_.decoder, blocks_.begin + static_cast<int>(n / linears),
                      n % linears);
  }

  Quartiles quartiles(const LinearSpec& spec, const Tensor& matrix) {
    const std::int64_t count = spec.rows * spec.cols;
    std::vector<KeySelection> selections;
    for (const std::int64_t rank : quartile_ranks(count).largest)
      selections.emplace_back(false, rank);
    while (!selections.front().done()) {
      for (KeySelection& each : selections) each.begin_round();
      for_each_tile(matrix, [&](const Tensor& w) {
        for (KeySelection& each : selections) each.count(w.view(), task_.backend);
      });
      for (KeySelection& each : selections) each.end_round();
    }
    std::array<float, 4> values{};
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = selections[i].value();
    return quartiles_of(count, values);
  }

  nlohmann::json thresholds_by_block(double factor) {
    nlohmann::json blocks = nlohmann::json::array();
    const std::size_t linears = task_.decoder.linears().size();
    for (std::size_t n = 0; n < quartiles_.size(); ++n) {
      if (n % linears == 0) blocks.push_back(nlohmann::json::array());
      at_linear(n, [&] {
        const float threshold = outlier_threshold(quartiles_[n], factor);
        if (!std::isfinite(threshold))
          throw NumericalError("the threshold of its outliers is beyond float32");
        blocks.back().push_back(threshold);
      });
    }
    return blocks;
  }

  // Those of all ranks.
  nlohmann::json share_blocks(const nlohmann::json& mine) {
    const std::string text = mine.dump();
    nlohmann::json all = nlohmann::json::array();
    for (const auto& part : task_.world.all_gather(std::as_bytes(std::span(text)))) {
      const char* const begin = reinterpret_cast<const char*>(part.data());
      for (nlohmann::json& block : nlohmann::json::parse(begin, begin + part.size()))
        all.push_back(std::move(block));
    }
    return all;
  }

  ModelTask& task_;
  PartRange blocks_;
  NumericalFailures failures_;
  std::vector<Quartiles> quartiles_;  // of this rank's blocks, linear by linear
};

}  // namespace

nlohmann::json find_outlier_thresholds(ModelTask& task, double percent) {
  return Thresholds(task).find(percent);
}

void add_over_ranks(Communicator& ranks, std::span<std::int64_t> counts) {
  const auto parts = ranks.all_gather(std::as_bytes(counts));
  std::ranges::fill(counts, 0);
  for (const auto& part : parts) {
    std::vector<std::int64_t> theirs(counts.size());
    require(part.size() == counts.size_bytes(), "ranks count differently many things");
    std::ranges::copy(part, std::as_writable_bytes(std::span(theirs)).begin());
    for (std::size_t i = 0; i < counts.size(); ++i) counts[i] += theirs[i];
  }
}

}  // namespace roundhouse
