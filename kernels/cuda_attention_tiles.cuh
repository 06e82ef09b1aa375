// What the attention kernels on tensor cores share: blocks of four warps, and tiles of one head's rows in shared memory.
#pragma once

#include "kernels/cuda_block.cuh"
#include "kernels/cuda_tensor_core.cuh"
#include "kernels/memory.h"

namespace roundhouse {

inline constexpr int kAttentionWarps = 4;
inline constexpr int kAttentionThreads = kAttentionWarps * kWarp;
inline constexpr int kFragmentRows = 16;  // of a
inline constexpr int kPiece = 8;          // elements of 16 bytes
inline constexpr float kLog2E = 1.4426950408889634f;

// Pieces of a row lie in an order that differs from row to row, so that eight rows of a matrix that is loaded lie in
// different banks.
template <int kHeadDim, int kRows>
struct Rows {
  __nv_bfloat16 at[kRows * kHeadDim];
  __device__ __nv_bfloat16* piece(int row, int column) {
    return at + row * kHeadDim + ((column / kPiece) ^ (row % 8)) * kPiece;
  }
};

// Rows [first, first + kRows) of one head of m; those from `end` on are cleared.
template <int kHeadDim, int kRows>
__device__ void copy_rows(Rows<kHeadDim, kRows>& to, const ConstMatrix& m, std::int64_t start,
                          std::int64_t column, int first, int end) {
  constexpr int kPieces = kHeadDim / kPiece;
  const int col = static_cast<int>(threadIdx.x) % kPieces * kPiece;
  const __nv_bfloat16* const from =
      static_cast<const __nv_bfloat16*>(m.data) + (start + first) * m.stride + column + col;
  for (int row = static_cast<int>(threadIdx.x) / kPieces; row < kRows;
       row += kAttentionThreads / kPieces) {
    const bool there = first + row < end;
    copy_async(to.piece(row, col), from + (there ? row : 0) * m.stride, !there);
  }
}

}  // namespace roundhouse
