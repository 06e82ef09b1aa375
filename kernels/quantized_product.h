// Products of quantized weights and vectors: weights are read packed, and become values on their way. That is what generating
// token by token does, where reading the weights is the time.
//
// Packed codes: each row by itself, the least significant bit first: code i occupies bits [i b, i b + b) of the row's words, and
// a row ends with a whole unit of 32 codes (filled up with 0), which is b words.
#pragma once

#include <cstdint>

#include "kernels/lookup_table.h"

namespace roundhouse {

inline constexpr std::int64_t kPackedUnit = 32;  // codes
inline std::int64_t packed_words_of_row(std::int64_t cols, int bits) {
  return (cols + kPackedUnit - 1) / kPackedUnit * bits;
}

struct PackCodes {
  ConstMatrix codes;  // [rows, cols] U8, each below 2^bits
  int bits;           // 2, 3 or 4
  Matrix packed;      // [rows, packed_words_of_row(cols, bits)] U32
};

// y = x wᵀ, w = scale (code - zero).  Sums are in F32 at least, in a fixed order.
struct UniformProduct {
  ConstMatrix x;       // [t, cols], any float type; t is small, each row is a pass over the weights
  ConstMatrix packed;  // [rows, packed_words_of_row(cols, bits)] U32
  int bits;            // 2, 3 or 4
  std::int64_t group_size;  // a multiple of 32, or at least cols
  ConstMatrix scales;       // [rows, groups] F16
  ConstMatrix zeros;        // [rows, groups] U8
  Matrix y;                 // [t, rows], the type of x
};

// y = x wᵀ, w = table[code] + sparse.
struct TableProduct {
  ConstMatrix x;
  ConstMatrix packed;
  int bits;
  ConstMatrix tables;  // [rows, 2^bits] F32
  SparseRows sparse;
  Matrix y;
};

class QuantizedProductKernels {
 public:
  virtual ~QuantizedProductKernels() = default;
  void pack_codes(const PackCodes& op);
  void multiply_uniform(const UniformProduct& op);
  void multiply_table(const TableProduct& op);

 private:
  virtual void run(const PackCodes& op) = 0;
  virtual void run(const UniformProduct& op) = 0;
  virtual void run(const TableProduct& op) = 0;
};

}  // namespace roundhouse
