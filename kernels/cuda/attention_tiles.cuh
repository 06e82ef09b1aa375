// What the attention kernels on tensor cores share: blocks of four warps, and tiles of one head's rows in shared memory.
//
// kHeadDim is a size that a kernel is compiled for, a multiple of 16. A smaller head, a multiple of 8, fills the first columns
// of a tile; the others are cleared there, add nothing to a score, and are never stored.
#pragma once

#include "kernels/cuda/block.cuh"
#include "kernels/cuda/float.cuh"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/memory.h"

namespace roundhouse {

inline constexpr int kAttentionWarps = 4;
inline constexpr int kAttentionThreads = kAttentionWarps * kWarp;
inline constexpr int kFragmentRows = 16;  // of a
inline constexpr int kPiece = 8;          // elements of 16 bytes
// What a GPU of compute capability 8.0 or later has for a block, at least.
inline constexpr std::size_t kAttentionSharedBytes = 99 << 10;
inline constexpr float kLog2E = 1.4426950408889634f;

// Eight rows of a matrix that is loaded must lie in different banks. So the pieces of a row lie in an order that differs from
// row to row, where they are a multiple of eight; otherwise a row takes one piece more, which makes their number odd.
template <int kHeadDim, int kRows>
struct Rows {
  static constexpr bool kReordered = kHeadDim / kPiece % 8 == 0;
  static constexpr int kStride = kReordered ? kHeadDim : kHeadDim + kPiece;
  __nv_bfloat16 at[kRows * kStride];
  __device__ __nv_bfloat16* piece(int row, int column) {
    const int piece = kReordered ? (column / kPiece) ^ (row % 8) : column / kPiece;
    return at + row * kStride + piece * kPiece;
  }
};

// Rows [first, first + kRows) of the head of m that begins at `column`; rows from `end` on and columns from head_dim on are
// cleared.
template <int kHeadDim, int kRows>
__device__ void copy_rows(Rows<kHeadDim, kRows>& to, const ConstMatrix& m, std::int64_t start,
                          std::int64_t column, int head_dim, int first, int end) {
  constexpr int kPieces = kHeadDim / kPiece;
  constexpr int kRowsAtOnce = kAttentionThreads / kPieces;
  const int col = static_cast<int>(threadIdx.x) % kPieces * kPiece;
  const int my_row = static_cast<int>(threadIdx.x) / kPieces;
  if constexpr (kAttentionThreads % kPieces != 0) {
    if (my_row == kRowsAtOnce) return;  // no piece of a whole row is left for it
  }
  const bool in_head = col < head_dim;
  const __nv_bfloat16* const from = static_cast<const __nv_bfloat16*>(m.data) +
                                    (start + first) * m.stride + column + (in_head ? col : 0);
  for (int row = my_row; row < kRows; row += kRowsAtOnce) {
    const bool there = in_head && first + row < end;
    copy_async(to.piece(row, col), from + (there ? row : 0) * m.stride, !there);
  }
}

// Heads of m lie in whole pieces at multiples of 16 bytes.
inline bool in_pieces(const ConstMatrix& m, std::int64_t head_dim) {
  return m.type == DType::kBF16 && head_dim % kPiece == 0 && can_pack(m);
}

}  // namespace roundhouse
