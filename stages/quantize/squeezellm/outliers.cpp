#include "stages/quantize/squeezellm/outliers.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "base/error.h"
#include "base/numerical_error.h"
#include "kernels/row_clusters.h"

namespace roundhouse {
namespace {

constexpr int kRoundBits = kMostKeyBits;

}  // namespace

KeySelection::KeySelection(bool magnitude, std::int64_t rank) : magnitude_(magnitude), rank_(rank) {
  require(rank > 0, "a selection's rank is at least 1");
}

void KeySelection::begin_round() {
  require(!done(), "a selection has found its value");
  counts_.assign(std::size_t{1} << std::min(kRoundBits, kKeyBits - prefix_bits_), 0);
}

void KeySelection::count(const ConstMatrix& x, SensitivityKernels& backend) {
  backend.count_keys({.x = x,
                      .magnitude = magnitude_,
                      .prefix = prefix_,
                      .prefix_bits = prefix_bits_,
                      .bits = std::min(kRoundBits, kKeyBits - prefix_bits_),
                      .counts = counts_});
}

void KeySelection::end_round() {
  std::size_t value = counts_.size();
  do {
    if (value == 0) {
      throw Error(fmt::format("a selection ran out of values: {} more were wanted", rank_));
    }
    --value;
    rank_ -= counts_[value];
  } while (rank_ > 0);
  rank_ += counts_[value];
  const int bits = std::min(kRoundBits, kKeyBits - prefix_bits_);
  prefix_ = prefix_ << bits | static_cast<std::uint32_t>(value);
  prefix_bits_ += bits;
}

float KeySelection::value() const {
  require(done(), "a selection has rounds left");
  return value_of_key(prefix_);
}

std::int64_t sensitive_rank(std::int64_t count, double percent) {
  require(0.0 <= percent && percent <= 100.0, "a share is 0 to 100 percent");
  return static_cast<std::int64_t>(static_cast<double>(count) * percent / 100.0);
}

QuartileRanks quartile_ranks(std::int64_t count) {
  require(count > 0, "quartiles of nothing");
  const std::int64_t q1 = (count - 1) / 4, q3 = 3 * (count - 1) / 4;  // from the smallest, from 0
  const auto largest = [&](std::int64_t index) { return count - std::min(index, count - 1); };
  return {{largest(q1), largest(q1 + 1), largest(q3), largest(q3 + 1)}};
}

Quartiles quartiles_of(std::int64_t count, const std::array<float, 4>& values) {
  const auto between = [&](double lower, double upper, std::int64_t quarters) {
    const double share = static_cast<double>(quarters * (count - 1) % 4) / 4.0;
    return lower + (upper - lower) * share;
  };
  return {between(static_cast<double>(values[0]), static_cast<double>(values[1]), 1),
          between(static_cast<double>(values[2]), static_cast<double>(values[3]), 3)};
}

float outlier_threshold(const Quartiles& q, double r) {
  const double width = q.q3 - q.q1;
  return static_cast<float>(std::max(std::abs(q.q1 - r * width), std::abs(q.q3 + r * width)));
}

OutlierFactor::OutlierFactor(std::int64_t target) : target_(target), counts_(kMostThresholds, 0) {
  require(target >= 0, "a number of outliers is not negative");
}

double OutlierFactor::candidate(std::size_t i) const {
  return low_ + (high_ - low_) * static_cast<double>(i + 1) / static_cast<double>(kMostThresholds);
}

std::vector<float> OutlierFactor::thresholds(const Quartiles& q) const {
  std::vector<float> all;
  for (std::size_t i = 0; i < kMostThresholds; ++i)
    all.push_back(outlier_threshold(q, candidate(i)));
  return all;
}

void OutlierFactor::end_round() {
  require(!done(), "the factor of outliers is found");
  std::size_t first = 0;
  while (first < kMostThresholds && counts_[first] > target_) ++first;
  if (first == kMostThresholds) {
    throw UnquantizableError(
        fmt::format("more than {} weights lie further outside their matrices' quartiles than 16 "
                    "times the distance between those: raise sparse: outliers, or set it to 0",
                    target_));
  }
  const double low = first == 0 ? low_ : candidate(first - 1);
  high_ = candidate(first);
  low_ = low;
  outliers_ = counts_[first];
  std::ranges::fill(counts_, 0);
  --rounds_left_;
}

}  // namespace roundhouse
