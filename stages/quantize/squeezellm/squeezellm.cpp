#include "stages/quantize/squeezellm/squeezellm.h"

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "model/block/model_units.h"
#include "stages/flow/phase_clock.h"
#include "stages/quantize/largest.h"
#include "stages/quantize/row_tiles.h"
#include "stages/quantize/sparse_tiles.h"
#include "stages/quantize/squeezellm/kmeans.h"
#include "stages/quantize/squeezellm/outlier_thresholds.h"
#include "stages/quantize/squeezellm/outliers.h"

namespace roundhouse {
namespace {

struct Shares {  // in percent, of what is kept beside the tables
  double sensitive = 0.0;
  double outliers = 0.0;
};

// What a rank makes of its rows of one linear.
struct SolvedTile {
  std::int64_t first;  // row
  TableTile table;
  SolveError error;
};

Tensor upload(const HostTensor& host, DType type, Backend& backend) {
  return Tensor::upload(backend, host.view(), type);
}

template <class T>
Tensor upload_row(DType type, const std::vector<T>& values, Backend& backend) {
  Tensor tensor(backend, type, 1, static_cast<std::int64_t>(values.size()));
  backend.upload(std::as_bytes(std::span(values)), tensor.view().data);
  return tensor;
}

// Of the whole tile: tables, and what is beside them.
SolveError error_of(const TableTile& tile, const Tensor& w, Backend& backend) {
  const std::int64_t rows = w.rows();
  Tensor codes(backend, DType::kU8, rows, w.cols());
  backend.upload(tile.codes.bytes(), codes.view().data);
  const Tensor tables = upload(tile.tables, DType::kF32, backend);
  Tensor value(backend, DType::kF32, rows, w.cols());
  Tensor starts, columns, values;
  SparseRows sparse;
  if (!tile.values.empty()) {
    starts = upload_row(DType::kI32, tile.starts, backend);
    columns = upload_row(DType::kI32, tile.columns, backend);
    values = upload_row(DType::kF32, tile.values, backend);
    sparse = {std::as_const(starts).view(), std::as_const(columns).view(),
              std::as_const(values).view()};
  }
  backend.dequantize_table(
      {.codes = codes.view(), .tables = tables.view(), .sparse = sparse, .w = value.view()});
  Tensor errors(backend, DType::kF32, rows, 1), norms(backend, DType::kF32, rows, 1);
  backend.row_errors(
      {.w = w.view(), .value = value.view(), .column_weights = {}, .sums = errors.view()});
  backend.row_errors({.w = w.view(), .value = {}, .column_weights = {}, .sums = norms.view()});
  const auto sum = [&](const Tensor& of_rows) {
    std::vector<float> numbers(static_cast<std::size_t>(rows));
    backend.download(of_rows.f32(), std::as_writable_bytes(std::span(numbers)));
    return std::accumulate(numbers.begin(), numbers.end(), 0.0);
  };
  return {.error = sum(errors), .norm = sum(norms)};
}

// Sums over all tiles of a linear.
struct Totals {
  SolveError error;
  double weighted_error = 0.0;
  std::int64_t unit_weight_rows = 0, few_value_rows = 0;
};

// Puts together what the ranks of a team made of a linear, on each of them.
class LinearTables {
 public:
  LinearTables(const LinearSpec& spec, const LinearScheme& scheme)
      : linear_(unsolved_linear(spec, scheme)), sparse_(scheme.sparse) {
    linear_.codes = HostTensor(DType::kU8, {spec.rows, spec.cols});
    linear_.table = HostTensor(DType::kF16, {spec.rows, std::int64_t{1} << scheme.bits});
  }

  static TileBytes bytes_of(const SolvedTile& tile) {
    TileBytes bytes;
    const TableTile& t = tile.table;
    append(bytes, std::as_bytes(std::span(&tile.error, 1)));
    append(bytes, std::as_bytes(std::span(t.rows)));
    append(bytes, t.codes.bytes());
    append(bytes, t.tables.bytes());
    append(bytes, SparseTile{t.starts, t.columns, t.values});
    return bytes;
  }

  void take(std::int64_t first, TileReader& bytes) {
    const std::int64_t count = std::min(kTileRows, linear_.rows - first);
    const auto read = [&](auto& values) { bytes.take(std::as_writable_bytes(std::span(values))); };
    std::array<SolveError, 1> error;
    read(error);
    totals_.error.error += error[0].error;
    totals_.error.norm += error[0].norm;
    std::vector<ClusteredRow> rows(static_cast<std::size_t>(count));
    read(rows);
    for (const ClusteredRow& row : rows) {
      totals_.weighted_error += row.error;
      totals_.unit_weight_rows += row.unit_weights;
      totals_.few_value_rows += row.few_values;
    }
    bytes.take(rows_of(linear_.codes, first, count));
    bytes.take(rows_of(linear_.table, first, count));
    sparse_tiles_.take(count, bytes);
  }

  QuantizedLinear finish() {
    linear_.record = {
        {"error", totals_.error.error},
        {"relative_error", totals_.error.norm > 0 ? totals_.error.error / totals_.error.norm : 0.0},
        {"weighted_error", totals_.weighted_error}};
    if (totals_.unit_weight_rows > 0) linear_.record["unit_weight_rows"] = totals_.unit_weight_rows;
    if (totals_.few_value_rows > 0) linear_.record["few_value_rows"] = totals_.few_value_rows;
    if (sparse_) {
      linear_.sparse = sparse_tiles_.finish();
      linear_.record["sparse_entries"] = sparse_tiles_.entries();
    }
    return std::move(linear_);
  }

 private:
  QuantizedLinear linear_;
  bool sparse_;
  Totals totals_;
  SparseTiles sparse_tiles_;
};

class SqueezeLlm final : public Method {
 public:
  explicit SqueezeLlm(OptionReader& options) : bits_(options.bits({2, 3, 4})) {
    sparse_ = options.section("sparse", false, [&](OptionReader& inner) {
      shares_.sensitive = inner.number("sensitive", 0.05, 0.0, 50.0);
      shares_.outliers = inner.number("outliers", 0.40, 0.0, 50.0);
      if (shares_.sensitive == 0.0 && shares_.outliers == 0.0) {
        throw RecipeError{"", "has nothing to keep: `sparse: false` is without a sparse part"};
      }
    });
    exact_ = options.boolean("exact", false);
    gradients_ = options.gradients();
    gradients_.sums.squares = true;
  }

  Needs needs() const override {
    return {.gradients = gradients_, .decision = shares_.outliers > 0.0};
  }
  std::vector<LinearScheme> schemes() const override { return {scheme()}; }
  // Beside the gradients, which gradient_cost() has.
  BlockCost cost(const DecoderBlock& decoder, int, int, DType, MadeBefore) const override {
    const BlockSizes sizes{decoder, 0};
    BlockCost cost;
    cost.rounded = sizes.all_weights();
    cost.clustered = sizes.all_weights();
    cost.cuts["solve"] = sizes.tiles();
    double rows = 0;
    for (const LinearSpec& linear : decoder.linears()) rows += static_cast<double>(linear.rows);
    const double entries = (shares_.sensitive + shares_.outliers) / 100 * sizes.all_weights();
    cost.traffic.gathered = sizes.all_weights() +
                            rows * (sizeof(ClusteredRow) + 4 + 2.0 * (1 << bits_)) +
                            28.0 * sizes.tile_count() + 8 * entries;
    cost.traffic.rounds = 8 * static_cast<double>(decoder.linears().size());
    return cost;
  }

  nlohmann::json decide(ModelTask& task) const override {
    return find_outlier_thresholds(task, shares_.outliers);
  }

  QuantizedBlock quantize(BlockTask& task) const override {
    require(task.gradients != nullptr, "SqueezeLLM needs gradients");
    QuantizedBlock block{.block = task.block, .linears = {}, .record = nlohmann::json::object()};
    PhaseClock clock(task.backend);
    for (std::size_t i = 0; i < task.decoder.linears().size(); ++i) {
      if (task.skips(i)) {
        if (task.commits()) block.linears.push_back(kept_linear(task.decoder.linears()[i]));
        continue;
      }
      task.monitor.phase(fmt::format("{}: k-means of {}", unit_name(task.block, task.decoder),
                                     task.decoder.linears()[i].name));
      QuantizedLinear linear = solve(task, i, clock);
      if (task.commits()) block.linears.push_back(std::move(linear));
      task.monitor.tick();
    }
    clock.write(block.record);
    return block;
  }

 private:
  LinearScheme scheme() const {
    return {.kind = LinearScheme::Kind::kTable, .bits = bits_, .group_size = -1, .sparse = sparse_};
  }

  QuantizedLinear solve(BlockTask& task, std::size_t index, PhaseClock& clock) const {
    const LinearSpec& spec = task.decoder.linears()[index];
    const std::vector<BlockGradients::Tile>& tiles = (*task.gradients)[index];
    const LinearScheme own = task.scheme_of(index, scheme());
    TableOptions options{.bits = own.bits, .exact = exact_};
    if (shares_.outliers > 0.0) {
      options.large_from = task.decision.at("large_from")
                               .at(static_cast<std::size_t>(task.block))
                               .at(index)
                               .get<float>();
    }
    clock.measure("select",
                  [&] { options.sensitive_above = sensitivity_threshold(task, spec, tiles); });
    LinearTables tables(spec, own);
    std::size_t next = 0;
    clock.measure("solve", [&] {
      share_tiles(
          task.team, spec.rows,
          [&](std::int64_t first, std::int64_t rows) {
            const BlockGradients::Tile& tile = tiles.at(next++);
            require(tile.first == first, "gradients of other rows");
            TileBytes bytes;
            with_rows_named(spec.name, first, [&] {
              const Tensor w = tile_weights(task.weights.linears[index], first, rows, task.backend);
              SolvedTile solved{
                  first, cluster_tile(w.view(), tile.squares, options, task.backend), {}};
              solved.error = error_of(solved.table, w, task.backend);
              bytes = LinearTables::bytes_of(solved);
            });
            task.monitor.tick();
            return bytes;
          },
          [&](std::int64_t first, TileReader& bytes) { tables.take(first, bytes); });
    });
    return tables.finish();
  }

  // Above it a weight of this linear is sensitive. The same on every rank of the team.
  float sensitivity_threshold(BlockTask& task, const LinearSpec& spec,
                              const std::vector<BlockGradients::Tile>& tiles) const {
    const std::int64_t rank = sensitive_rank(spec.rows * spec.cols, shares_.sensitive);
    if (rank == 0) return std::numeric_limits<float>::infinity();
    return select_over_ranks(task.team, false, rank, [&](KeySelection& selection) {
      for (const BlockGradients::Tile& tile : tiles) selection.count(tile.squares, task.backend);
    });
  }

  int bits_;
  bool sparse_ = false;
  Shares shares_;
  bool exact_ = false;
  Needs::Gradients gradients_{};
};

}  // namespace

std::unique_ptr<Method> make_squeezellm(OptionReader& options) {
  return std::make_unique<SqueezeLlm>(options);
}

}  // namespace roundhouse
