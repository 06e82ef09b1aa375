#include "stages/quantize/gptq_factor.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/error.h"

namespace roundhouse {
namespace {

constexpr double kLeastRaise = 0.01;
constexpr double kMostDamping = 1.0;
constexpr int kFloorRounds = 6;
constexpr double kFirstFloor = 1e-6;  // of the largest diagonal value

bool all_finite(std::span<const float> values) {
  return std::ranges::all_of(values, [](float v) { return std::isfinite(v); });
}

// The lower triangle of J P H Pᵀ J: row i is the column that is quantized i-th from last.
HostTensor reversed(std::span<const float> hessian, std::span<const float> diagonal,
                    std::span<const std::int64_t> order) {
  const auto n = static_cast<std::int64_t>(order.size());
  HostTensor result(DType::kF32, {n, n});
  const std::span<float> to = result.as<float>();
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t column = order[static_cast<std::size_t>(n - 1 - i)];
    const auto from = hessian.subspan(static_cast<std::size_t>(column * n));
    const auto row = to.subspan(static_cast<std::size_t>(i * n));
    for (std::int64_t j = 0; j < i; ++j) {
      row[static_cast<std::size_t>(j)] =
          from[static_cast<std::size_t>(order[static_cast<std::size_t>(n - 1 - j)])];
    }
    row[static_cast<std::size_t>(i)] = diagonal[static_cast<std::size_t>(column)];
  }
  return result;
}

// U of `matrix` (as reversed() gives it) with `raise` added to its diagonal; nothing where that is not positive definite.
Tensor try_factor(const HostTensor& matrix, double raise, Backend& backend) {
  const std::int64_t n = matrix.shape()[0];
  HostTensor raised = matrix;
  const std::span<float> values = raised.as<float>();
  for (std::int64_t i = 0; i < n; ++i) {
    float& value = values[static_cast<std::size_t>(i * n + i)];
    value = static_cast<float>(value + raise);
  }
  Tensor lower = Tensor::upload(backend, raised.view(), DType::kF32);
  if (!backend.cholesky({.a = lower.view()})) return {};
  backend.triangular_inverse({.l = lower.view()});
  Tensor upper(backend, DType::kF32, n, n);
  backend.reverse(lower.view(), upper.view());
  // A matrix that is only just positive definite may have an inverse beyond float32.
  std::uint8_t finite = 0;
  backend.check_finite({.x = upper.view(), .rows_each = n, .finite = std::span(&finite, 1)});
  if (!finite) return {};
  return upper;
}

template <class T>
void broadcast_vector(std::vector<T>& values, std::int64_t n, int owner, Communicator& team) {
  values.resize(static_cast<std::size_t>(n));
  team.broadcast(std::as_writable_bytes(std::span(values)), owner);
}

// In pieces, so that no rank is silent for long and no second copy of U is needed.
void broadcast_upper(Tensor& upper, int owner, Communicator& team, Backend& backend,
                     Monitor& monitor) {
  constexpr std::int64_t kPieceBytes = 64 << 20;
  const std::int64_t n = upper.rows();
  const std::int64_t rows_each =
      std::max<std::int64_t>(1, kPieceBytes / (n * static_cast<std::int64_t>(sizeof(float))));
  for (std::int64_t first = 0; first < n; first += rows_each) {
    const std::int64_t rows = std::min(rows_each, n - first);
    std::vector<float> piece(static_cast<std::size_t>(rows * n));
    const std::span<std::byte> bytes = std::as_writable_bytes(std::span(piece));
    float* device = upper.view().row_range(first, first + rows).f32();
    if (team.rank() == owner) backend.download(device, bytes);
    team.broadcast(bytes, owner);
    if (team.rank() != owner) {
      backend.upload(bytes, device);
      backend.sync();
    }
    monitor.tick();
  }
}

}  // namespace

bool HessianFactor::same_as_columns() const {
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (order[i] != static_cast<std::int64_t>(i)) return false;
  }
  return true;
}

HessianFactor factorize(const HostTensor& hessian, double damping, bool by_importance,
                        Backend& backend, Monitor& monitor) {
  const std::int64_t n = hessian.shape()[0];
  const std::span<const float> h = hessian.as<float>();
  HessianFactor factor;
  factor.damping = damping;
  factor.order.resize(static_cast<std::size_t>(n));
  factor.diagonal.resize(static_cast<std::size_t>(n));
  factor.dead.resize(static_cast<std::size_t>(n));
  std::iota(factor.order.begin(), factor.order.end(), std::int64_t{0});

  double sum = 0, largest = 0;
  for (std::size_t k = 0; k < factor.diagonal.size(); ++k) {
    const float value = h[k * static_cast<std::size_t>(n) + k];
    factor.dead[k] = value == 0.0f;
    factor.diagonal[k] = factor.dead[k] ? 1.0f : value;
    sum += factor.diagonal[k];
    largest = std::max(largest, std::fabs(static_cast<double>(factor.diagonal[k])));
  }
  if (!all_finite(h)) {
    factor.status = FactorStatus::kNotFinite;
    return factor;
  }
  if (by_importance) {
    std::ranges::stable_sort(factor.order, [&](std::int64_t a, std::int64_t b) {
      return factor.diagonal[static_cast<std::size_t>(a)] >
             factor.diagonal[static_cast<std::size_t>(b)];
    });
  }

  const HostTensor matrix = reversed(h, factor.diagonal, factor.order);
  const double mean = sum / static_cast<double>(n);
  const auto attempt = [&] {
    ++factor.tries;
    monitor.tick();
    factor.upper = try_factor(matrix, factor.damping * mean + factor.diagonal_floor, backend);
    return !factor.upper.empty();
  };
  if (attempt()) return factor;
  while (factor.damping < kMostDamping) {
    factor.damping = std::min(kMostDamping, std::max(kLeastRaise, 2 * factor.damping));
    if (attempt()) return factor;
  }
  for (int round = 1; round <= kFloorRounds; ++round) {
    factor.diagonal_floor = kFirstFloor * std::pow(10.0, round - 1) * largest;
    if (attempt()) return factor;
  }
  factor.status = FactorStatus::kNotPositiveDefinite;
  return factor;
}

void share(HessianFactor& factor, std::int64_t columns, int owner, Communicator& team,
           Backend& backend, Monitor& monitor) {
  if (team.size() == 1) return;
  struct Header {
    FactorStatus status;
    std::int32_t tries;
    double damping, diagonal_floor;
  } header{factor.status, factor.tries, factor.damping, factor.diagonal_floor};
  team.broadcast(std::as_writable_bytes(std::span(&header, 1)), owner);
  factor.status = header.status;
  factor.tries = header.tries;
  factor.damping = header.damping;
  factor.diagonal_floor = header.diagonal_floor;
  broadcast_vector(factor.order, columns, owner, team);
  broadcast_vector(factor.diagonal, columns, owner, team);
  broadcast_vector(factor.dead, columns, owner, team);
  if (factor.status != FactorStatus::kDone) return;
  if (team.rank() != owner) factor.upper = Tensor(backend, DType::kF32, columns, columns);
  broadcast_upper(factor.upper, owner, team, backend, monitor);
}

}  // namespace roundhouse
