#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/error.h"

namespace roundhouse {
namespace {

// The share of each pair's frequency that is kept; the rest is divided by the factor.
double llama3_share(const RopeConfig& rope, double frequency) {
  const double turns =
      static_cast<double>(rope.original_positions) * frequency / (2.0 * std::numbers::pi);
  return std::clamp((turns - rope.low_frequency_factor) /
                        (rope.high_frequency_factor - rope.low_frequency_factor),
                    0.0, 1.0);
}

// The pair, as a real number, that turns so many times in the original positions.
double pair_of_turns(const RopeConfig& rope, double turns) {
  return static_cast<double>(rope.columns) *
         std::log(static_cast<double>(rope.original_positions) / (turns * 2.0 * std::numbers::pi)) /
         (2.0 * std::log(rope.theta));
}

std::vector<double> yarn_shares(const RopeConfig& rope) {
  double low = pair_of_turns(rope, rope.beta_fast), high = pair_of_turns(rope, rope.beta_slow);
  if (rope.ramp_of_whole_pairs) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(rope.columns - 1));
  if (low == high) high += 0.001;
  std::vector<double> shares(static_cast<std::size_t>(rope.columns / 2));
  for (std::size_t j = 0; j < shares.size(); ++j) {
    shares[j] = 1.0 - std::clamp((static_cast<double>(j) - low) / (high - low), 0.0, 1.0);
  }
  return shares;
}

}  // namespace

std::vector<double> rotary_frequencies(const RopeConfig& rope, std::int64_t length) {
  std::vector<double> frequencies(static_cast<std::size_t>(rope.columns / 2));
  for (std::size_t j = 0; j < frequencies.size(); ++j) {
    frequencies[j] =
        std::pow(rope.theta, -2.0 * static_cast<double>(j) / static_cast<double>(rope.columns));
  }
  const auto mix = [&](double& frequency, double share) {
    frequency = frequency / rope.factor * (1.0 - share) + frequency * share;
  };
  switch (rope.scaling) {
    case RopeConfig::Scaling::kNone:
    case RopeConfig::Scaling::kDynamic:
      break;
    case RopeConfig::Scaling::kLinear:
      for (double& frequency : frequencies) frequency /= rope.factor;
      break;
    case RopeConfig::Scaling::kLlama3:
      for (double& frequency : frequencies) mix(frequency, llama3_share(rope, frequency));
      break;
    case RopeConfig::Scaling::kYarn: {
      const std::vector<double> shares = yarn_shares(rope);
      for (std::size_t j = 0; j < shares.size(); ++j) mix(frequencies[j], shares[j]);
      break;
    }
    case RopeConfig::Scaling::kLongRope: {
      const std::vector<double>& factors =
          length > rope.original_positions ? rope.long_factors : rope.short_factors;
      require(factors.size() == frequencies.size(), "a factor for each pair of rotated columns");
      for (std::size_t j = 0; j < factors.size(); ++j) frequencies[j] /= factors[j];
      break;
    }
  }
  return frequencies;
}

}  // namespace roundhouse
