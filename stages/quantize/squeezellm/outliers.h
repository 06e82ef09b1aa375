// Which weights SqueezeLLM keeps beside its lookup tables: the most sensitive ones of each matrix, and those that lie far
// outside the quartiles of theirs. Everything is decided from integer counts, which are added over tiles and ranks in any order,
// so that the same weights are kept however the matrices are dealt out.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/sensitivity.h"

namespace roundhouse {

// The rank-th largest of many values (1: the largest), by radix selection: three rounds of
//   begin_round(); count(...) each piece that is here; [add counts() over the ranks]; end_round();
class KeySelection {
 public:
  // `magnitude`: of the absolute values.
  KeySelection(bool magnitude, std::int64_t rank);

  bool done() const { return prefix_bits_ == kKeyBits; }
  void begin_round();
  void count(const ConstMatrix& x, SensitivityKernels& backend);  // F32; x may be empty
  std::span<std::int64_t> counts() { return counts_; }
  void end_round();  // throws Error if there are fewer values than `rank`

  float value() const;  // Precondition: done(). NaN if `rank` values or more are

 private:
  static constexpr int kKeyBits = 32;
  bool magnitude_;
  std::int64_t rank_;  // among the keys with this prefix
  std::uint32_t prefix_ = 0;
  int prefix_bits_ = 0;
  std::vector<std::int64_t> counts_;
};

// The rank of the sensitivity above which (strictly, as the authors do) a matrix's weights are kept: int(count percent / 100).
// 0: none is.
std::int64_t sensitive_rank(std::int64_t count, double percent);

// Quartiles as numpy.quantile's: between two neighbours of the sorted values, at (count - 1) / 4 and 3 (count - 1) / 4.
struct QuartileRanks {
  std::array<std::int64_t, 4>
      largest;  // ranks for KeySelection: q1's lower and upper neighbour, q3's
};
QuartileRanks quartile_ranks(std::int64_t count);
struct Quartiles {
  double q1, q3;
};
// values[i] is the one of rank largest[i].
Quartiles quartiles_of(std::int64_t count, const std::array<float, 4>& values);

// Weights of at least this magnitude are outliers of their matrix: max(|q1 - r (q3 - q1)|, |q3 + r (q3 - q1)|).
float outlier_threshold(const Quartiles& q, double r);

// The one factor r of all matrices of a model with which at most `target` weights are outliers, to 16 / 2^18 = 6e-5:
//   while (!done()) { for each matrix: count_large() with thresholds(its quartiles) into counts(); [add over ranks]; end_round(); }
class OutlierFactor {
 public:
  explicit OutlierFactor(std::int64_t target);

  bool done() const { return rounds_left_ == 0; }
  std::vector<float> thresholds(const Quartiles& q) const;  // one for each candidate, ascending
  std::span<std::int64_t> counts() { return counts_; }
  void end_round();  // throws UnquantizableError if even the largest factor leaves more outliers

  double value() const { return high_; }               // Precondition: done()
  std::int64_t outliers() const { return outliers_; }  // with it

 private:
  double candidate(std::size_t i) const;
  std::int64_t target_;
  double low_ = 0.0, high_ = 16.0;
  int rounds_left_ = 3;
  std::int64_t outliers_ = 0;
  std::vector<std::int64_t> counts_;
};

}  // namespace roundhouse
