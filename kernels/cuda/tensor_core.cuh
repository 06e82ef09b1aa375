// The instructions that CUDA C++ has no functions for (PTX ISA, sections on ldmatrix, mma and cp.async; compute capability
// 8.0), one function each. All lanes of a warp call them together, except the copies.
//
// A fragment is what a lane holds of a small matrix. With g = lane / 4 and t = lane % 4, in pairs of neighbouring columns:
//   a [16, 16]  a[0]: row g, columns 2t, 2t+1;  a[1]: row g+8;  a[2]: row g, columns 2t+8, 2t+9;  a[3]: row g+8, the same
//   b [16, 8]   b0: rows 2t, 2t+1 of column g;  b1: rows 2t+8, 2t+9
//   c [16, 8]   c[0], c[1]: row g, columns 2t, 2t+1;  c[2], c[3]: row g+8
#pragma once

#include <cuda_bf16.h>

#include <cstring>

namespace roundhouse {

__device__ inline unsigned shared_address(const void* memory) {
  return static_cast<unsigned>(__cvta_generic_to_shared(memory));
}

// Four 8 x 8 matrices of 16-bit values in shared memory: lanes 8 i to 8 i + 7 name the rows of matrix i, 16 aligned bytes
// each. r[i] becomes the lane's pair in row lane / 4, columns 2 (lane % 4) and the next.
__device__ inline void load_matrices(unsigned (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same of the transposed matrices.
__device__ inline void load_matrices_transposed(unsigned (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// c += a b, BF16 with sums in F32.
__device__ inline void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                    unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Starts to copy 16 aligned bytes from device memory to shared memory, or to clear them; `from` is a valid address either way.
__device__ inline void copy_async(void* to, const void* from, bool clear) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(clear ? 0 : 16)
               : "memory");
}

// What this thread has started since the last call becomes a group.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all groups of this thread but the last kPending.
template <int kPending>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Two neighbouring values of a fragment.
__device__ inline unsigned pack_bfloat16(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  unsigned bits;
  memcpy(&bits, &pair, sizeof(bits));
  return bits;
}

}  // namespace roundhouse
