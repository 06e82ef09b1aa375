// One single-threaded product of F32 tiles: c = alpha op(a) op(b) + beta c, all row-major. Call it
// from inside for_each_piece() only.
#pragma once

#include <cstdint>
#include <string>

namespace roundhouse {

struct Sgemm {
  std::int64_t m, n, k;
  const float* a;
  std::int64_t a_stride;
  bool transpose_a = false;
  const float* b;
  std::int64_t b_stride;
  bool transpose_b = false;
  float* c;
  std::int64_t c_stride;
  float alpha = 1.0f;
  float beta = 0.0f;
};

void sgemm(const Sgemm& op);  // throws Error
// The library and the vectors that it uses here: "oneDNN 2.6.3 with AVX-512".
std::string sgemm_library();

// The edge of the square tiles into which an [m, n] result is cut: large for speed (oneDNN packs
// its operands again for each tile), but at least a few dozen tiles where the result is large
// enough to be shared by many cores.
std::int64_t tile_edge(std::int64_t m, std::int64_t n);

}  // namespace roundhouse
