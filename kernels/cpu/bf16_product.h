// One single-threaded product of BF16 tiles with sums in F32: c (+)= op(a) op(b), all row-major. Call it from inside
// for_each_piece() only.
#pragma once

#include <cstdint>
#include <string>

namespace roundhouse {

struct Bf16Product {
  std::int64_t m, n, k;
  const std::uint16_t* a;
  std::int64_t a_stride;
  bool transpose_a = false;
  const std::uint16_t* b;
  std::int64_t b_stride;
  bool transpose_b = false;
  float* c;
  std::int64_t c_stride;
  bool accumulate = false;
};

void bf16_product(const Bf16Product& op);  // throws Error
// Whether the processor multiplies BF16 (AVX-512 BF16, AMX) and the library uses that.
bool has_bf16_products();
std::string bf16_vectors();  // which of them

}  // namespace roundhouse
