#include "stages/quantize/gptq/solve.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "stages/quantize/rtn/rtn.h"

namespace roundhouse {
namespace {

constexpr std::int64_t kPanel = 128;

class TileSolver {
 public:
  TileSolver(const QuantizedLinear& linear, const GptqSettings& settings,
             const HessianFactor& factor, Backend& backend);

  TileResult solve(const Tensor& weights);

 private:
  // Scale and zero point of each (row, group).
  struct GridPoints {
    Tensor scales;  // F32
    Tensor zeros;   // U8
  };

  void find_grids(ConstMatrix w, std::int64_t group_size, Matrix scales, Matrix zeros);
  Tensor gather_columns(const Tensor& from, const Tensor& columns);
  // find: grids of groups that are not fixed beforehand.
  void solve_columns(Tensor& w, GridPoints& grids, bool find, Tensor& codes, Tensor& row_loss);
  std::vector<float> losses_of_zeros(const Tensor& weights);
  Tensor difference(const Tensor& a, const Tensor& b);
  std::vector<float> to_host(const Tensor& column);
  void replace_worse_than_zeros(const Tensor& weights, const Tensor& row_loss, const Tensor& norms,
                                TileResult& result);

  const QuantizedLinear& linear_;
  const GptqSettings& settings_;
  const HessianFactor& factor_;
  Backend& backend_;
  bool fixed_grids_;
  // [1, cols] each. Dead columns are -1, which gathers 0.
  Tensor alive_;       // column k itself
  Tensor in_order_;    // the column that is quantized i-th
  Tensor back_;        // the place in that order of column k
  Tensor group_of_;    // the group of the column that is quantized i-th
  Tensor importance_;  // the diagonal of H, by column
};

TileSolver::TileSolver(const QuantizedLinear& linear, const GptqSettings& settings,
                       const HessianFactor& factor, Backend& backend)
    : linear_(linear),
      settings_(settings),
      factor_(factor),
      backend_(backend),
      fixed_grids_(linear.groups() == 1 || settings.act_order == ActOrder::kStatic) {
  std::vector<std::int64_t> alive, in_order, back(factor.order.size()), group_of;
  for (std::size_t i = 0; i < factor.order.size(); ++i) {
    const std::int64_t column = factor.order[i];
    alive.push_back(factor.dead[i] ? -1 : static_cast<std::int64_t>(i));
    in_order.push_back(factor.dead[column] ? -1 : column);
    back[column] = static_cast<std::int64_t>(i);
    group_of.push_back((fixed_grids_ ? column : static_cast<std::int64_t>(i)) / linear.group_size);
  }
  alive_ = upload_index(alive, backend);
  in_order_ = upload_index(in_order, backend);
  back_ = upload_index(back, backend);
  group_of_ = upload_index(group_of, backend);
  importance_ = Tensor(backend, DType::kF32, 1, linear.cols);
  backend.upload(std::as_bytes(std::span(factor.diagonal)), importance_.view().data);
}

void TileSolver::find_grids(ConstMatrix w, std::int64_t group_size, Matrix scales, Matrix zeros) {
  backend_.find_grid({.w = w,
                      .group_size = group_size,
                      .grid = settings_.scheme.grid,
                      .bits = settings_.scheme.bits,
                      .clip = clip_search_steps(settings_.clip_search),
                      .scales = scales,
                      .zeros = zeros});
}

Tensor TileSolver::gather_columns(const Tensor& from, const Tensor& columns) {
  Tensor to(backend_, from.type(), from.rows(), columns.cols());
  backend_.gather({.from = from.view(), .rows = {}, .cols = columns.view(), .to = to.view()});
  return to;
}

// `w`: the columns in the factor's order; used up. `grids`: by group of the checkpoint; filled here unless fixed beforehand.
void TileSolver::solve_columns(Tensor& w, GridPoints& grids, bool find, Tensor& codes,
                               Tensor& row_loss) {
  const std::int64_t rows = w.rows(), cols = w.cols(), group_size = linear_.group_size;
  Tensor scales(backend_, DType::kF32, rows, kPanel);
  Tensor zeros(backend_, DType::kU8, rows, kPanel);
  Tensor errors(backend_, DType::kF32, rows, kPanel);

  for (std::int64_t begin = 0; begin < cols;) {
    std::int64_t end = std::min(begin + kPanel, cols);
    if (find) {
      const std::int64_t group = begin / group_size;
      const std::int64_t group_end = std::min((group + 1) * group_size, cols);
      end = std::min(end, group_end);
      if (begin == group * group_size) {
        find_grids(w.view().col_range(begin, group_end), group_end - begin,
                   grids.scales.view().col_range(group, group + 1),
                   grids.zeros.view().col_range(group, group + 1));
      }
    }

    const std::int64_t width = end - begin;
    const ConstMatrix groups = std::as_const(group_of_).view().col_range(begin, end);
    const Matrix panel_scales = scales.view().col_range(0, width);
    const Matrix panel_zeros = zeros.view().col_range(0, width);
    backend_.gather({.from = grids.scales.view(), .rows = {}, .cols = groups, .to = panel_scales});
    backend_.gather({.from = grids.zeros.view(), .rows = {}, .cols = groups, .to = panel_zeros});

    const ConstMatrix u = factor_.upper.view().row_range(begin, end);
    const Matrix panel_errors = errors.view().col_range(0, width);
    backend_.gptq_panel({.w = w.view().col_range(begin, end),
                         .u = u.col_range(begin, end),
                         .bits = settings_.scheme.bits,
                         .scales = panel_scales,
                         .zeros = panel_zeros,
                         .codes = codes.view().col_range(begin, end),
                         .errors = panel_errors,
                         .row_loss = row_loss.view()});
    if (end < cols) {
      backend_.matmul({.a = panel_errors,
                       .b = u.col_range(end, cols),
                       .c = w.view().col_range(end, cols),
                       .alpha = -1.0f,
                       .beta = 1.0f});
    }
    begin = end;
  }
}

TileResult TileSolver::solve(const Tensor& weights) {
  const std::int64_t rows = weights.rows(), cols = weights.cols(), groups = linear_.groups();
  Tensor norms(backend_, DType::kF32, rows, 1);
  backend_.row_errors({.w = weights.view(),
                       .value = {},
                       .column_weights = importance_.view(),
                       .sums = norms.view()});

  GridPoints grids{Tensor(backend_, DType::kF32, rows, groups),
                   Tensor(backend_, DType::kU8, rows, groups)};
  if (groups == 1) {
    find_grids(weights.view(), cols, grids.scales.view(), grids.zeros.view());
  } else if (fixed_grids_) {
    find_grids(gather_columns(weights, alive_).view(), linear_.group_size, grids.scales.view(),
               grids.zeros.view());
  }
  Tensor updated = gather_columns(weights, in_order_);

  Tensor codes(backend_, DType::kU8, rows, cols);
  Tensor row_loss(backend_, DType::kF32, rows, 1);
  backend_.zero(row_loss.view());
  solve_columns(updated, grids, !fixed_grids_, codes, row_loss);
  TileResult result = download_tile(gather_columns(codes, back_), grids.scales, grids.zeros,
                                    row_loss, norms, backend_);
  replace_worse_than_zeros(weights, row_loss, norms, result);
  return result;
}

std::vector<float> TileSolver::to_host(const Tensor& column) {
  std::vector<float> values(static_cast<std::size_t>(column.rows()));
  backend_.download(column.f32(), std::as_writable_bytes(std::span(values)));
  return values;
}

// By the same way, on grids so wide that every weight is nearest to their 0.
std::vector<float> TileSolver::losses_of_zeros(const Tensor& weights) {
  constexpr float kWide = 1e30f;
  const std::int64_t rows = weights.rows(), groups = linear_.groups();
  HostTensor scales(DType::kF32, {rows, groups});
  std::ranges::fill(scales.as<float>(), kWide);
  GridPoints grids{Tensor::upload(backend_, scales.view(), DType::kF32),
                   Tensor(backend_, DType::kU8, rows, groups)};
  backend_.zero(grids.zeros.view());
  Tensor w = gather_columns(weights, in_order_);
  Tensor codes(backend_, DType::kU8, rows, w.cols());
  Tensor losses(backend_, DType::kF32, rows, 1);
  backend_.zero(losses.view());
  solve_columns(w, grids, false, codes, losses);
  return to_host(losses);
}

Tensor TileSolver::difference(const Tensor& a, const Tensor& b) {
  HostTensor x(DType::kF32, {a.rows(), a.cols()}), y(DType::kF32, {a.rows(), a.cols()});
  backend_.download(a.view().data, x.bytes());
  backend_.download(b.view().data, y.bytes());
  std::ranges::transform(x.as<float>(), y.as<float>(), x.as<float>().begin(), std::minus());
  return Tensor::upload(backend_, x.view(), DType::kF32);
}

// Where errors add up instead of cancelling (little damping, columns not by importance), a row may end further from its outputs than if
// all its weights were 0. Its codes are then those of rounding to nearest, on grids of the weights themselves, if that is nearer. Only tiles
// with a row whose loss exceeds that of zeros by the diagonal of H alone, which is known, are looked at.
void TileSolver::replace_worse_than_zeros(const Tensor& weights, const Tensor& row_loss,
                                          const Tensor& norms, TileResult& result) {
  const std::int64_t rows = weights.rows(), groups = linear_.groups();
  const std::vector<float> loss = to_host(row_loss), norm = to_host(norms);
  std::vector<std::int64_t> worse;
  for (std::int64_t row = 0; row < rows; ++row) {
    const auto at = static_cast<std::size_t>(row);
    if (!(loss[at] <= norm[at])) worse.push_back(row);
  }
  if (worse.empty()) return;
  const std::vector<float> zeros_loss = losses_of_zeros(weights);
  std::erase_if(worse, [&](std::int64_t row) {
    const auto at = static_cast<std::size_t>(row);
    return loss[at] <= zeros_loss[at];
  });
  if (worse.empty()) return;

  // In the order in which groups are runs of columns: that of the checkpoint, or that of the factor.
  const Tensor w = gather_columns(weights, fixed_grids_ ? alive_ : in_order_);
  Tensor scales(backend_, DType::kF32, rows, groups), zeros(backend_, DType::kU8, rows, groups);
  Tensor codes(backend_, DType::kU8, rows, w.cols());
  find_grids(w.view(), linear_.group_size, scales.view(), zeros.view());
  backend_.round_to_grid({.w = w.view(),
                          .group_size = linear_.group_size,
                          .bits = settings_.scheme.bits,
                          .scales = scales.view(),
                          .zeros = zeros.view(),
                          .codes = codes.view()});
  Tensor value(backend_, DType::kF32, rows, w.cols());
  backend_.dequantize({.codes = codes.view(),
                       .group_size = linear_.group_size,
                       .scales = scales.view(),
                       .zeros = zeros.view(),
                       .group_of_column = {},
                       .w = value.view()});
  if (!fixed_grids_) {
    codes = gather_columns(codes, back_);
    value = gather_columns(value, back_);
  }
  // What (W - Q) H (W - Q)T is of W, it is of W - Q where all becomes 0.
  const std::vector<float> error = losses_of_zeros(difference(weights, value));
  std::vector<float> now = loss;
  std::int64_t replaced = 0;
  TileResult rounded = download_tile(codes, scales, zeros, row_loss, norms, backend_);
  for (const std::int64_t row : worse) {
    const auto at = static_cast<std::size_t>(row);
    if (!(error[at] < loss[at]) && std::isfinite(loss[at])) continue;
    now[at] = error[at];
    ++replaced;
    for (const auto part : {&TileResult::codes, &TileResult::scales, &TileResult::zeros}) {
      std::ranges::copy(rows_of(rounded.*part, row, 1), rows_of(result.*part, row, 1).begin());
    }
  }
  result.error.error = std::accumulate(now.begin(), now.end(), 0.0);
  result.error.rounded_rows = replaced;
}

// The group of each column where groups are not runs of the checkpoint's columns.
HostTensor groups_of_columns(const QuantizedLinear& linear, const HessianFactor& factor) {
  HostTensor groups(DType::kI32, {linear.cols});
  const std::span<std::int32_t> of = groups.as<std::int32_t>();
  for (std::int64_t i = 0; i < linear.cols; ++i) {
    of[factor.order[static_cast<std::size_t>(i)]] =
        static_cast<std::int32_t>(i / linear.group_size);
  }
  return groups;
}

}  // namespace

QuantizedLinear solve_gptq(const LinearSpec& spec, const Tensor& weights,
                           const GptqSettings& settings, const HessianFactor& factor,
                           const TeamSite& site) {
  Backend& backend = site.backend;
  QuantizedLinear linear = unsolved_linear(spec, settings.scheme);
  const bool factored = factor.status == FactorStatus::kDone;
  SolveError error;
  if (factored) {
    TileSolver solver(linear, settings, factor, backend);
    error = solve_in_tiles(site, linear, [&](std::int64_t first, std::int64_t rows) {
      return solver.solve(tile_weights(weights, first, rows, backend));
    });
    if (settings.act_order == ActOrder::kDynamic && linear.groups() > 1) {
      linear.group_of_column = groups_of_columns(linear, factor);
    }
  } else {
    error = round_to_nearest(site, linear, weights, clip_search_steps(settings.clip_search));
  }
  linear.record = {{"error", error.error},
                   {"relative_error", error.norm > 0 ? error.error / error.norm : 0.0},
                   {"damping", factor.damping},
                   {"damping_tries", factor.tries},
                   {"diagonal_floor", factor.diagonal_floor},
                   {"dead_columns", std::ranges::count(factor.dead, std::uint8_t{1})}};
  if (!factored) linear.record["fallback"] = "rtn";
  if (factor.status == FactorStatus::kNotFinite) linear.record["hessian"] = "not finite";
  if (error.rounded_rows > 0) linear.record["rounded_rows"] = error.rounded_rows;
  return linear;
}

}  // namespace roundhouse
