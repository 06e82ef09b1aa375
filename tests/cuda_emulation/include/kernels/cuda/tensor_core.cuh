// Stands in for kernels/cuda/tensor_core.cuh: the same functions, as the PTX ISA describes what they do.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

namespace emulation {
std::uint64_t tensor_core_products();  // that warps have made since the program began
}

namespace roundhouse {

void load_matrices(unsigned (&r)[4], const void* row,
                   std::source_location where = std::source_location::current());
void load_matrices_transposed(unsigned (&r)[4], const void* row,
                              std::source_location where = std::source_location::current());
void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1,
                  std::source_location where = std::source_location::current());

inline void copy_async(void* to, const void* from, bool clear,
                       std::source_location where = std::source_location::current()) {
  if ((reinterpret_cast<std::uintptr_t>(to) | reinterpret_cast<std::uintptr_t>(from)) % 16 != 0) {
    emulation::fail("an asynchronous copy is not aligned", where);
  }
  emulation::copy_later(clear ? nullptr : from, to, 16);
}
inline void commit_copies() { emulation::commit_copies(); }
template <int kPending>
void wait_for_copies() {
  emulation::wait_for_copies(kPending);
}

inline unsigned pack_bfloat16(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  unsigned bits;
  std::memcpy(&bits, &pair, sizeof(bits));
  return bits;
}

}  // namespace roundhouse
