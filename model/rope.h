// Frequencies of the rotary position embedding (Su et al. 2021, "RoFormer"), and how models change them to read longer texts
// than they were first trained on.
#pragma once

#include <cstdint>
#include <vector>

namespace roundhouse {

struct RopeConfig {
  // Pair j of d columns turns by f_j a position; without scaling f_j = theta^(-2 j / d).
  enum class Scaling {
    kNone,
    kLinear,   // f_j / factor
    kDynamic,  // only beyond max_position_embeddings, where no sequence of ours goes: kNone
    kLlama3,   // slow pairs as kLinear, fast ones as kNone, a ramp over frequencies between
    kYarn,  // the same with a ramp over pairs, and angles' cosines and sines scaled (Peng et al. 2023)
    kLongRope,  // f_j / short_factors[j] or long_factors[j], scaled as well (Ding et al. 2024)
  };
  double theta = 10000.0;
  std::int64_t columns =
      0;  // of each head that are turned, its first: head_dim unless the rotation is partial
  Scaling scaling = Scaling::kNone;
  double factor = 1.0;
  double low_frequency_factor =
      1.0;  // kLlama3: pairs that turn less often than this in original_positions are slow,
  double high_frequency_factor = 4.0;  // more often than this fast
  double beta_fast = 32.0;  // kYarn: the same, with whole pairs for bounds if ramp_of_whole_pairs
  double beta_slow = 1.0;
  bool ramp_of_whole_pairs = true;
  std::vector<double>
      short_factors;  // kLongRope, a pair each: sequences of up to original_positions
  std::vector<double> long_factors;     // and longer ones
  std::int64_t original_positions = 0;  // of the first training
  double magnitude = 1.0;               // what cosines and sines are multiplied with

  bool operator==(const RopeConfig&) const = default;
};

// f_j of every pair, for sequences of `length` tokens, which matters to kLongRope alone.
std::vector<double> rotary_frequencies(const RopeConfig& rope, std::int64_t length);

}  // namespace roundhouse
