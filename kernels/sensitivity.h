// What gradients say of weights: how much the loss rises when they are rounded, and which are too large or too sensitive to be.
// Sums and counts have the same bits for any number of threads; counts can be added over ranks in any order.
#pragma once

#include <cstdint>
#include <limits>
#include <span>

#include "kernels/memory.h"

namespace roundhouse {

// One width at which weights would be rounded, on the grids of its groups.
struct RoundingWidth {
  int bits;            // 1 to 8
  ConstMatrix scales;  // [rows, groups] F32
  ConstMatrix zeros;   // [rows, groups] U8
  // Weights above it in magnitude are kept as they are, beside the rounded ones.
  float kept_above = std::numeric_limits<float>::infinity();
};

// Over all weights, of p = gradient (w - value):  sum p, sum |p|, sum p².
struct RoundingSums {
  double first_order = 0.0;
  double absolute = 0.0;
  double squares = 0.0;
};

// The sums of several widths at once. Products and sums are in double; a row is summed in a fixed order, and rows are added
// in one.
struct RoundingProducts {
  ConstMatrix gradient;  // [rows, cols] F32
  ConstMatrix w;         // [rows, cols], F32 or the device's activation type
  std::int64_t group_size;
  std::span<const RoundingWidth> widths;  // at most kMostRoundingWidths
  std::span<RoundingSums> sums;           // one each, overwritten
};
inline constexpr std::size_t kMostRoundingWidths = 4;

// A step of radix selection. The key of x is a number of 32 bits that rises with x (or with |x|, if `magnitude`); see key_of()
// in kernels/float_key.h. Of the keys whose first `prefix_bits` bits are `prefix`, counts those with each value of the next
// `bits` bits: counts[value] += their number. NaN counts as more than infinity.
struct CountKeys {
  ConstMatrix x;  // F32
  bool magnitude;
  std::uint32_t prefix;
  int prefix_bits;
  int bits;                        // at most kMostKeyBits; prefix_bits + bits <= 32
  std::span<std::int64_t> counts;  // on the host, 2^bits
};
inline constexpr int kMostKeyBits = 11;

// counts[i] += the number of weights with |w| >= thresholds[i] whose sensitivity is not above `sensitive_above`.
struct CountLarge {
  ConstMatrix w;            // F32
  ConstMatrix sensitivity;  // like it, or empty: none is sensitive
  float sensitive_above;
  std::span<const float> thresholds;  // ascending, at most kMostThresholds
  std::span<std::int64_t> counts;     // on the host, as many
};
inline constexpr std::size_t kMostThresholds = 64;

// Takes out of a matrix what is kept beside it, in one pass: removed = 1 where |w| >= large_from or sensitivity >
// sensitive_above, and w and sensitivity become 0 there.
struct RemoveOutliers {
  Matrix w;            // F32
  Matrix sensitivity;  // like it
  float sensitive_above;
  float large_from;
  Matrix removed;  // U8, the same shape
};

class SensitivityKernels {
 public:
  virtual ~SensitivityKernels() = default;
  void rounding_products(
      const RoundingProducts& op);  // waits for the device, as do those that count
  void count_keys(const CountKeys& op);
  void count_large(const CountLarge& op);
  void remove_outliers(const RemoveOutliers& op);

 private:
  virtual void run(const RoundingProducts& op) = 0;
  virtual void run(const CountKeys& op) = 0;
  virtual void run(const CountLarge& op) = 0;
  virtual void run(const RemoveOutliers& op) = 0;
};

}  // namespace roundhouse
