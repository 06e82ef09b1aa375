#include "stages/quantize/gptq/factor.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "stages/flow/matrix_sum.h"

namespace roundhouse {
namespace {

constexpr double kLeastRaise = 0.01;
constexpr double kMostDamping = 1.0;
constexpr int kFloorRounds = 6;
constexpr double kFirstFloor = 1e-6;  // of the largest diagonal value

// The diagonal of a square matrix, as a column.
Matrix diagonal_of(Matrix m) { return {m.data, m.type, m.rows, 1, m.stride + 1}; }
ConstMatrix diagonal_of(ConstMatrix m) { return {m.data, m.type, m.rows, 1, m.stride + 1}; }

std::vector<float> download_diagonal(const Tensor& matrix, Backend& backend) {
  Tensor dense(backend, DType::kF32, matrix.rows(), 1);
  backend.copy(diagonal_of(matrix.view()), dense.view());
  std::vector<float> values(static_cast<std::size_t>(matrix.rows()));
  backend.download(dense.f32(), std::as_writable_bytes(std::span(values)));
  return values;
}

bool is_finite(const Tensor& matrix, Backend& backend) {
  std::uint8_t finite = 0;
  backend.check_finite(
      {.x = matrix.view(), .rows_each = matrix.rows(), .finite = std::span(&finite, 1)});
  return finite != 0;
}

// U of the Hessian with `raise` added to its diagonal; nothing where that is not positive definite. `from_last`: [1, n] I32,
// the column that is quantized i-th from last.
Tensor try_factor(const Tensor& hessian, const HessianFactor& factor, const Tensor& from_last,
                  double raise, Backend& backend) {
  const std::int64_t n = hessian.rows();
  Tensor lower(backend, DType::kF32, n, n);  // J P H Pᵀ J
  backend.gather({.from = hessian.view(),
                  .rows = from_last.view(),
                  .cols = from_last.view(),
                  .to = lower.view()});
  HostTensor raised(DType::kF32, {n, 1});
  for (std::size_t i = 0; i < factor.order.size(); ++i) {
    const auto column = static_cast<std::size_t>(factor.order[factor.order.size() - 1 - i]);
    raised.as<float>()[i] = static_cast<float>(factor.diagonal[column] + raise);
  }
  const Tensor diagonal = Tensor::upload(backend, raised.view(), DType::kF32);
  backend.copy(diagonal.view(), diagonal_of(lower.view()));
  if (!backend.cholesky({.a = lower.view()})) return {};
  backend.triangular_inverse({.l = lower.view()});
  Tensor upper(backend, DType::kF32, n, n);
  backend.reverse(lower.view(), upper.view());
  // A matrix that is only just positive definite may have an inverse beyond float32.
  if (!is_finite(upper, backend)) return {};
  return upper;
}

template <class T>
void broadcast_vector(std::vector<T>& values, std::int64_t n, int owner, Communicator& team) {
  values.resize(static_cast<std::size_t>(n));
  team.broadcast(std::as_writable_bytes(std::span(values)), owner);
}

}  // namespace

bool HessianFactor::same_as_columns() const {
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (order[i] != static_cast<std::int64_t>(i)) return false;
  }
  return true;
}

HessianFactor factorize(const Tensor& hessian, double damping, bool by_importance, Backend& backend,
                        Monitor& monitor) {
  const std::int64_t n = hessian.rows();
  const std::vector<float> diagonal = download_diagonal(hessian, backend);
  HessianFactor factor;
  factor.damping = damping;
  factor.order.resize(static_cast<std::size_t>(n));
  factor.diagonal.resize(static_cast<std::size_t>(n));
  factor.dead.resize(static_cast<std::size_t>(n));
  std::iota(factor.order.begin(), factor.order.end(), std::int64_t{0});

  double sum = 0, largest = 0;
  for (std::size_t k = 0; k < factor.diagonal.size(); ++k) {
    factor.dead[k] = diagonal[k] == 0.0f;
    factor.diagonal[k] = factor.dead[k] ? 1.0f : diagonal[k];
    sum += factor.diagonal[k];
    largest = std::max(largest, std::fabs(static_cast<double>(factor.diagonal[k])));
  }
  if (!is_finite(hessian, backend)) {
    factor.status = FactorStatus::kNotFinite;
    return factor;
  }
  if (by_importance) {
    std::ranges::stable_sort(factor.order, [&](std::int64_t a, std::int64_t b) {
      return factor.diagonal[a] > factor.diagonal[b];
    });
  }

  const Tensor from_last =
      upload_index(std::vector<std::int64_t>(factor.order.rbegin(), factor.order.rend()), backend);
  const double mean = sum / static_cast<double>(n);
  const auto attempt = [&] {
    ++factor.tries;
    monitor.tick();
    factor.upper = try_factor(hessian, factor, from_last,
                              factor.damping * mean + factor.diagonal_floor, backend);
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
           Transport& device_team, Backend& backend, Monitor& monitor) {
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
  share(factor.upper, columns, columns, owner, device_team, backend, monitor);
}

}  // namespace roundhouse
