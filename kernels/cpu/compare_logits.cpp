// Kullback-Leibler divergences of rows of logits.
#include <algorithm>
#include <cmath>
#include <cstddef>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/row_maximum.h"
#include "kernels/cpu/vector_math.h"

namespace roundhouse {
namespace {

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] Divergence divergence(
    const float* reference, const float* logits, std::int64_t n) {
  const std::int64_t top = column_of_largest(reference, n);
  const std::int64_t other_top = column_of_largest(logits, n);
  const float most = reference[top];
  const float other_most = logits[other_top];
  // In eight sums each, which the compiler keeps in vectors.
  constexpr std::int64_t kSums = 8;
  double sums[kSums] = {}, other_sums[kSums] = {}, differences[kSums] = {};
  const auto add = [&](std::int64_t begin, std::int64_t width) {
    for (std::int64_t k = 0; k < width; ++k) {
      const float a = reference[begin + k] - most, b = logits[begin + k] - other_most;
      const double p = fast_exp(a);
      sums[k] += p;
      other_sums[k] += fast_exp(b);
      differences[k] += p * (static_cast<double>(a) - b);
    }
  };
  std::int64_t begin = 0;
  for (; begin + kSums <= n; begin += kSums) add(begin, kSums);
  add(begin, n - begin);
  double sum = 0, other_sum = 0, difference = 0;
  for (std::int64_t k = 0; k < kSums; ++k) {
    sum += sums[k];
    other_sum += other_sums[k];
    difference += differences[k];
  }
  // sum p (a - ln sum e^a - b + ln sum e^b)
  return {.nats = difference / sum - std::log(sum) + std::log(other_sum),
          .same_top = top == other_top ? 1 : 0};
}

}  // namespace

void CpuBackend::run(const CompareLogits& op) {
  const float* const reference = op.reference.f32();
  const float* const logits = op.logits.f32();
  const std::int64_t cols = op.logits.cols;
  for_each_range(threads_, op.logits.rows, rows_per_piece(cols),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t row = begin; row < end; ++row) {
                     op.divergences[row] = divergence(reference + row * op.reference.stride,
                                                      logits + row * op.logits.stride, cols);
                   }
                 });
}

}  // namespace roundhouse
