#include "tests/bench/random_tensor.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "base/random.h"

namespace roundhouse {
namespace {

// So many different values, again and again: drawing each of a large matrix takes longer than what is to be timed. A prime, so
// that they fall into other columns from row to row.
constexpr std::size_t kDistinct = 1048573;

std::vector<float> distinct_values() {
  Random random(1);
  std::vector<float> values(kDistinct);
  // Three uniform numbers are close enough to a normal one, and quick. Their variance is 3 / 12.
  for (float& value : values) {
    value = static_cast<float>((random.uniform() + random.uniform() + random.uniform() - 1.5) * 2);
  }
  return values;
}

}  // namespace

Tensor random_tensor(Backend& backend, DType type, std::int64_t rows, std::int64_t cols,
                     double scale) {
  static const std::vector<float> values = distinct_values();
  std::vector<float> scaled(values.size());
  std::ranges::transform(values, scaled.begin(),
                         [&](float value) { return value * static_cast<float>(scale); });
  std::vector<std::byte> stored(kDistinct * size_of(type));
  convert(DType::kF32, scaled.data(), type, stored.data(), kDistinct);

  Tensor tensor(backend, type, rows, cols);
  auto* const to = static_cast<std::byte*>(tensor.view().data);
  for (std::size_t done = 0; done < tensor.bytes(); done += stored.size()) {
    const std::size_t piece = std::min(stored.size(), tensor.bytes() - done);
    backend.upload(std::span(stored).first(piece), to + done);
  }
  backend.sync();
  return tensor;
}

double matmul_rate(Backend& backend, DType type, std::int64_t n) {
  using Clock = std::chrono::steady_clock;
  const Tensor x = random_tensor(backend, type, n, n), w = random_tensor(backend, type, n, n);
  Tensor y(backend, type, n, n);
  double best = 1e30;
  for (int i = 0; i < 6; ++i) {
    const auto start = Clock::now();
    backend.linear({.x = x.view(), .w = w.view(), .bias = {}, .y = y.view()});
    backend.sync();
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    if (i > 0) best = std::min(best, seconds);
  }
  const double size = static_cast<double>(n);
  return 2 * size * size * size / best;
}

}  // namespace roundhouse
