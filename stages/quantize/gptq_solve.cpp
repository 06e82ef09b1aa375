#include "stages/quantize/gptq_solve.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/dtype.h"
#include "stages/quantize/rtn.h"

namespace roundhouse {
namespace {

constexpr std::int64_t kPanel = 128;

// A row-major matrix in host memory. Columns are permuted here, between download and upload.
template <class T>
struct HostMatrix {
  std::int64_t rows, cols;
  std::vector<T> values = std::vector<T>(static_cast<std::size_t>(rows * cols));

  T& at(std::int64_t r, std::int64_t c) { return values[static_cast<std::size_t>(r * cols + c)]; }
  const T& at(std::int64_t r, std::int64_t c) const {
    return values[static_cast<std::size_t>(r * cols + c)];
  }
  std::span<std::byte> bytes() { return std::as_writable_bytes(std::span(values)); }
};

// Scale and zero point of each (row, group), or of each (row, column).
struct GridPoints {
  HostMatrix<float> scales;
  HostMatrix<std::uint8_t> zeros;

  GridPoints(std::int64_t rows, std::int64_t cols) : scales{rows, cols}, zeros{rows, cols} {}
  void set(std::int64_t r, std::int64_t c, const GridPoints& from, std::int64_t from_c) {
    scales.at(r, c) = from.scales.at(r, from_c);
    zeros.at(r, c) = from.zeros.at(r, from_c);
  }
};

class TileSolver {
 public:
  TileSolver(const QuantizedLinear& linear, const GptqSettings& settings,
             const HessianFactor& factor, Backend& backend)
      : linear_(linear), settings_(settings), factor_(factor), backend_(backend) {}

  TileResult solve(Tensor weights);

 private:
  bool grids_are_fixed() const {
    return linear_.groups() == 1 || settings_.act_order == ActOrder::kStatic;
  }
  GridPoints find_grids(ConstMatrix w, std::int64_t group_size);
  void solve_columns(Tensor& w, GridPoints& grids, Tensor& codes, Tensor& row_loss);
  TileResult collect(const GridPoints& grids, const Tensor& codes, const Tensor& row_loss);

  const QuantizedLinear& linear_;
  const GptqSettings& settings_;
  const HessianFactor& factor_;
  Backend& backend_;
};

GridPoints TileSolver::find_grids(ConstMatrix w, std::int64_t group_size) {
  const std::int64_t groups = (w.cols + group_size - 1) / group_size;
  Tensor scales(backend_, DType::kF32, w.rows, groups);
  Tensor zeros(backend_, DType::kU8, w.rows, groups);
  backend_.find_grid({.w = w,
                      .group_size = group_size,
                      .grid = settings_.grid,
                      .bits = settings_.bits,
                      .clip = clip_search_steps(settings_.clip_search),
                      .scales = scales.view(),
                      .zeros = zeros.view()});
  GridPoints grids(w.rows, groups);
  backend_.download(scales.f32(), grids.scales.bytes());
  backend_.download(zeros.view().data, grids.zeros.bytes());
  return grids;
}

// `w`: the columns in the factor's order; used up. `grids`: by group of the checkpoint; filled here unless fixed beforehand.
void TileSolver::solve_columns(Tensor& w, GridPoints& grids, Tensor& codes, Tensor& row_loss) {
  const std::int64_t rows = w.rows(), cols = w.cols(), group_size = linear_.group_size;
  const bool fixed = grids_are_fixed();
  Tensor scales(backend_, DType::kF32, rows, kPanel);
  Tensor zeros(backend_, DType::kU8, rows, kPanel);
  Tensor errors(backend_, DType::kF32, rows, kPanel);

  for (std::int64_t begin = 0; begin < cols;) {
    std::int64_t end = std::min(begin + kPanel, cols);
    if (!fixed) {
      const std::int64_t group = begin / group_size;
      const std::int64_t group_end = std::min((group + 1) * group_size, cols);
      end = std::min(end, group_end);
      if (begin == group * group_size) {
        const GridPoints found =
            find_grids(w.view().col_range(begin, group_end), group_end - begin);
        for (std::int64_t r = 0; r < rows; ++r) grids.set(r, group, found, 0);
      }
    }

    GridPoints of_columns(rows, kPanel);
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = begin; c < end; ++c) {
        const std::int64_t place = fixed ? factor_.order[static_cast<std::size_t>(c)] : c;
        of_columns.set(r, c - begin, grids, place / group_size);
      }
    }
    backend_.upload(of_columns.scales.bytes(), scales.view().data);
    backend_.upload(of_columns.zeros.bytes(), zeros.view().data);

    const std::int64_t width = end - begin;
    const ConstMatrix u = ConstMatrix(factor_.upper.view()).row_range(begin, end);
    const Matrix panel_errors = errors.view().col_range(0, width);
    backend_.gptq_panel({.w = w.view().col_range(begin, end),
                         .u = u.col_range(begin, end),
                         .bits = settings_.bits,
                         .scales = scales.view().col_range(0, width),
                         .zeros = zeros.view().col_range(0, width),
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
    backend_.sync();  // of_columns was uploaded from here
    begin = end;
  }
}

TileResult TileSolver::collect(const GridPoints& grids, const Tensor& codes,
                               const Tensor& row_loss) {
  const std::int64_t rows = codes.rows(), cols = codes.cols();
  TileResult result{.codes = HostTensor(DType::kU8, {rows, cols}),
                    .scales = HostTensor(DType::kF16, {rows, linear_.groups()}),
                    .zeros = HostTensor(DType::kU8, {rows, linear_.groups()}),
                    .error = {}};
  HostMatrix<std::uint8_t> in_order{rows, cols};
  backend_.download(codes.view().data, in_order.bytes());
  const std::span<std::uint8_t> to = result.codes.as<std::uint8_t>();
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; ++c) {
      to[static_cast<std::size_t>(r * cols + factor_.order[static_cast<std::size_t>(c)])] =
          in_order.at(r, c);
    }
  }
  convert(DType::kF32, grids.scales.values.data(), DType::kF16, result.scales.bytes().data(),
          grids.scales.values.size());
  std::ranges::copy(grids.zeros.values, result.zeros.as<std::uint8_t>().begin());

  HostMatrix<float> loss{rows, 1};
  backend_.download(row_loss.f32(), loss.bytes());
  for (const float row : loss.values) result.error.error += row;
  return result;
}

TileResult TileSolver::solve(Tensor weights) {
  const std::int64_t rows = weights.rows(), cols = weights.cols(), groups = linear_.groups();
  HostMatrix<float> original{rows, cols};
  backend_.download(weights.f32(), original.bytes());
  double norm = 0;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; ++c) {
      const double w = original.at(r, c);
      norm += 0.5 * w * w * factor_.diagonal[static_cast<std::size_t>(c)];
    }
  }

  GridPoints grids(rows, groups);
  if (groups == 1) grids = find_grids(weights.view(), cols);
  for (std::int64_t c = 0; c < cols; ++c) {
    if (!factor_.dead[static_cast<std::size_t>(c)]) continue;
    for (std::int64_t r = 0; r < rows; ++r) original.at(r, c) = 0.0f;
  }
  if (groups > 1 && grids_are_fixed()) {
    backend_.upload(original.bytes(), weights.view().data);
    grids = find_grids(weights.view(), linear_.group_size);
  }

  HostMatrix<float> permuted{rows, cols};
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; ++c) {
      permuted.at(r, c) = original.at(r, factor_.order[static_cast<std::size_t>(c)]);
    }
  }
  backend_.upload(permuted.bytes(), weights.view().data);

  Tensor codes(backend_, DType::kU8, rows, cols);
  Tensor row_loss(backend_, DType::kF32, rows, 1);
  backend_.zero(row_loss.view());
  solve_columns(weights, grids, codes, row_loss);
  TileResult result = collect(grids, codes, row_loss);
  result.error.norm = norm;
  return result;
}

// The group of each column where groups are not runs of the checkpoint's columns.
HostTensor groups_of_columns(const QuantizedLinear& linear, const HessianFactor& factor) {
  HostTensor groups(DType::kI32, {linear.cols});
  const std::span<std::int32_t> of = groups.as<std::int32_t>();
  for (std::int64_t i = 0; i < linear.cols; ++i) {
    of[static_cast<std::size_t>(factor.order[static_cast<std::size_t>(i)])] =
        static_cast<std::int32_t>(i / linear.group_size);
  }
  return groups;
}

}  // namespace

QuantizedLinear solve_gptq(const LinearSpec& spec, const Tensor& weights,
                           const GptqSettings& settings, const HessianFactor& factor,
                           Communicator& team, Backend& backend) {
  QuantizedLinear linear = unsolved_linear(spec, settings.bits, settings.group_size, settings.grid);
  const bool factored = factor.status == FactorStatus::kDone;
  SolveError error;
  if (factored) {
    TileSolver solver(linear, settings, factor, backend);
    error = solve_in_tiles(team, linear, [&](std::int64_t first, std::int64_t rows) {
      return solver.solve(tile_weights(weights, first, rows, backend));
    });
    if (settings.act_order == ActOrder::kDynamic && linear.groups() > 1) {
      linear.group_of_column = groups_of_columns(linear, factor);
    }
  } else {
    error =
        round_to_nearest(team, linear, weights, clip_search_steps(settings.clip_search), backend);
  }
  linear.record = {{"error", error.error},
                   {"relative_error", error.norm > 0 ? error.error / error.norm : 0.0},
                   {"damping", factor.damping},
                   {"damping_tries", factor.tries},
                   {"diagonal_floor", factor.diagonal_floor},
                   {"dead_columns", std::ranges::count(factor.dead, std::uint8_t{1})}};
  if (!factored) linear.record["fallback"] = "rtn";
  return linear;
}

}  // namespace roundhouse
