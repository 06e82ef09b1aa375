// Attention without a matrix of scores in memory, on tensor cores (Dao et al. 2022; Dao 2023).
//
// A block has kQueries queries of one head, a warp 16 kRowTiles of them. Keys and values come in tiles of kKeys through two
// stages of shared memory: while one is worked on, the next one is copied. A lane holds scores and output of its rows g and
// g + 8 of each row tile (see cuda_tensor_core.cuh); scores become probabilities in registers, which are then the fragments
// of the product with the values. m is the largest score of a row so far, l the lane's share of the sum of exp(score - m).
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/block.cuh"
#include "kernels/cuda/float.cuh"
#include "kernels/cuda/launch.cuh"

namespace roundhouse {
namespace {

template <int kHeadDim, int kRowTiles, int kKeys>
struct Shared {
  static constexpr int kQueries = kAttentionWarps * kFragmentRows * kRowTiles;
  Rows<kHeadDim, kQueries> q;
  Rows<kHeadDim, kKeys> k[2];
  Rows<kHeadDim, kKeys> v[2];
};

// The maximum or sum over the four lanes that share a row.
template <class Combine>
__device__ float row_reduce(float value, Combine combine) {
  value = combine(value, __shfl_xor_sync(kAllLanes, value, 1));
  return combine(value, __shfl_xor_sync(kAllLanes, value, 2));
}

template <int kHeadDim, int kRowTiles, int kKeys>
__global__ void __launch_bounds__(kAttentionThreads)
    tensor_core_attention_kernel(Attention op, UnscaledCap cap) {
  using Memory = Shared<kHeadDim, kRowTiles, kKeys>;
  Memory& shared = shared_memory<Memory>();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int length = static_cast<int>(op.length);
  const int blocks = (length + Memory::kQueries - 1) / Memory::kQueries;
  // Late queries see most keys: their blocks come first, so that the GPU's processors end together.
  const int pieces = static_cast<int>(gridDim.x) / blocks;  // sequences * heads
  const int piece = static_cast<int>(blockIdx.x) % pieces;
  const int begin = (blocks - 1 - static_cast<int>(blockIdx.x) / pieces) * Memory::kQueries;
  const int head = piece % static_cast<int>(op.heads);
  const std::int64_t start = piece / op.heads * op.length;
  const int head_dim = static_cast<int>(op.head_dim);
  const std::int64_t kv_column = head / (op.heads / op.kv_heads) * head_dim;
  const int window = op.window > 0 && op.window < op.length ? static_cast<int>(op.window) : length;
  const int first_seen = begin - window + 1 > 0 ? begin - window + 1 : 0;
  const int end = begin + Memory::kQueries < length ? begin + Memory::kQueries : length;
  const int first_key = first_seen / kKeys * kKeys;

  copy_rows(shared.q, op.q, start, static_cast<std::int64_t>(head) * head_dim, head_dim, begin,
            length);
  copy_rows(shared.k[0], op.k, start, kv_column, head_dim, first_key, length);
  copy_rows(shared.v[0], op.v, start, kv_column, head_dim, first_key, length);
  commit_copies();

  const int my_first = begin + warp * kFragmentRows * kRowTiles;  // of the warp's queries
  const int my_last = my_first + kFragmentRows * kRowTiles - 1;
  const int pair = lane % 4 * 2;  // column of the lane's pair in a fragment
  const float to_log2 = op.scale * kLog2E;
  float out[kRowTiles][kHeadDim / 8][4] = {};
  float m[kRowTiles][2];
  float l[kRowTiles][2] = {};
#pragma unroll
  for (int tile = 0; tile < kRowTiles; ++tile) m[tile][0] = m[tile][1] = -INFINITY;

  int stage = 0;
  for (int key = first_key; key < end; key += kKeys, stage = 1 - stage) {
    wait_for_copies<0>();
    __syncthreads();  // this stage is there for all, and nobody works on the other one any more
    if (key + kKeys < end) {
      copy_rows(shared.k[1 - stage], op.k, start, kv_column, head_dim, key + kKeys, length);
      copy_rows(shared.v[1 - stage], op.v, start, kv_column, head_dim, key + kKeys, length);
      commit_copies();
    }
    if (key > my_last || key + kKeys - 1 <= my_first - window)
      continue;  // this warp sees none of them

    float score[kRowTiles][kKeys / 8][4] = {};
#pragma unroll 2  // more would cost registers
    for (int col = 0; col < kHeadDim; col += 16) {
      unsigned a[kRowTiles][4];
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
        const int row = (warp * kRowTiles + tile) * kFragmentRows + lane % 16;
        load_matrices(a[tile], shared.q.piece(row, col + lane / 16 * 8));
      }
#pragma unroll
      for (int j = 0; j < kKeys; j += 16) {
        unsigned b[4];  // keys j to j+7 and j+8 to j+15, two halves of columns each
        load_matrices(b,
                      shared.k[stage].piece(j + lane / 16 * 8 + lane % 8, col + lane / 8 % 2 * 8));
#pragma unroll
        for (int tile = 0; tile < kRowTiles; ++tile) {
          multiply_add(score[tile][j / 8], a[tile], b[0], b[1]);
          multiply_add(score[tile][j / 8 + 1], a[tile], b[2], b[3]);
        }
      }
    }

    if (cap.inner > 0.0f) {
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            score[tile][j][i] = cap.outer * cap.tanh_of(score[tile][j][i]);
          }
        }
      }
    }
    if (key + kKeys - 1 > my_first ||
        key <= my_last - window) {  // some of the warp's queries see not all
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int query = my_first + tile * kFragmentRows + lane / 4 + i / 2 * 8;
            const int at = key + j * 8 + pair + i % 2;
            if (at > query || at <= query - window) score[tile][j][i] = -INFINITY;
          }
        }
      }
    }

#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {  // row g, row g + 8
        float largest = m[tile][half];
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j) {
          largest = fmaxf(largest, fmaxf(score[tile][j][2 * half], score[tile][j][2 * half + 1]));
        }
        largest = row_reduce(largest, Larger());
        const float shift =
            largest == -INFINITY ? 0.0f : largest * to_log2;  // a row may see none here
        const float factor = exp2f(m[tile][half] * to_log2 - shift);
        m[tile][half] = largest;
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            score[tile][j][i] = exp2f(score[tile][j][i] * to_log2 - shift);
            sum += score[tile][j][i];
          }
        }
        l[tile][half] = l[tile][half] * factor + sum;
#pragma unroll
        for (int j = 0; j < kHeadDim / 8; ++j) {
          out[tile][j][2 * half] *= factor;
          out[tile][j][2 * half + 1] *= factor;
        }
      }
    }

#pragma unroll
    for (int j = 0; j < kKeys; j += 16) {
      unsigned p[kRowTiles][4];
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
        const float(&low)[4] = score[tile][j / 8];
        const float(&high)[4] = score[tile][j / 8 + 1];
        p[tile][0] = pack_bfloat16(low[0], low[1]);
        p[tile][1] = pack_bfloat16(low[2], low[3]);
        p[tile][2] = pack_bfloat16(high[0], high[1]);
        p[tile][3] = pack_bfloat16(high[2], high[3]);
      }
#pragma unroll
      for (int col = 0; col < kHeadDim; col += 16) {
        unsigned b[4];  // columns col to col+7 and col+8 to col+15, two halves of keys each
        load_matrices_transposed(
            b, shared.v[stage].piece(j + lane / 8 % 2 * 8 + lane % 8, col + lane / 16 * 8));
#pragma unroll
        for (int tile = 0; tile < kRowTiles; ++tile) {
          multiply_add(out[tile][col / 8], p[tile], b[0], b[1]);
          multiply_add(out[tile][col / 8 + 1], p[tile], b[2], b[3]);
        }
      }
    }
  }

#pragma unroll
  for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float divisor = row_reduce(l[tile][half], Plus());
      const int query = my_first + tile * kFragmentRows + lane / 4 + half * 8;
      if (query >= length) continue;
      if (op.log_sum_exp.data != nullptr && lane % 4 == 0) {
        static_cast<float*>(op.log_sum_exp.data)[(start + query) * op.log_sum_exp.stride + head] =
            m[tile][half] * op.scale + logf(divisor);
      }
      __nv_bfloat16* const to = static_cast<__nv_bfloat16*>(op.out.data) +
                                (start + query) * op.out.stride + head * head_dim + pair;
#pragma unroll
      for (int j = 0; j < kHeadDim / 8; ++j) {
        if (j * 8 >= head_dim) break;
        *reinterpret_cast<unsigned*>(to + j * 8) =
            pack_bfloat16(out[tile][j][2 * half] / divisor, out[tile][j][2 * half + 1] / divisor);
      }
    }
  }
}

template <int kHeadDim, int kRowTiles, int kKeys>
void launch_attention(const Attention& op, CudaDevice& device) {
  using Memory = Shared<kHeadDim, kRowTiles, kKeys>;
  static_assert(sizeof(Memory) <= kAttentionSharedBytes);
  const std::int64_t blocks = (op.length + Memory::kQueries - 1) / Memory::kQueries;
  launch(tensor_core_attention_kernel<kHeadDim, kRowTiles, kKeys>,
         {.grid = blocks_for(op.q.rows / op.length * op.heads * blocks),
          .threads = kAttentionThreads,
          .shared_bytes = sizeof(Memory),
          .stream = device.stream()},
         op, UnscaledCap(op.scale, op.score_cap));
}

}  // namespace

bool attention_on_tensor_cores(const Attention& op, CudaDevice& device) {
  const std::int64_t head_dim = op.head_dim;
  for (const ConstMatrix& m : {op.q, op.k, op.v, ConstMatrix(op.out)}) {
    if (!in_pieces(m, head_dim)) return false;
  }
  if (head_dim <= 32) {
    launch_attention<32, 2, 64>(op, device);
  } else if (head_dim <= 64) {
    launch_attention<64, 2, 64>(op, device);
  } else if (head_dim <= 96) {
    launch_attention<96, 2, 32>(op, device);
  } else if (head_dim <= 128) {
    launch_attention<128, 2, 32>(op, device);
  } else if (head_dim <= 192) {
    launch_attention<192, 1, 32>(op, device);
  } else {
    launch_attention<256, 1, 32>(op, device);
  }
  return true;
}

}  // namespace roundhouse
