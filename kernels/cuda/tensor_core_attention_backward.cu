// The backward pass of attention on tensor cores (Dao et al. 2022, algorithm 4), as kernels of one text: for dk and dv a block
// has 64 keys and meets the queries that see them; for dq it has 64 queries and meets the keys that they see. Scores are
// computed by both, so that nobody adds to what another block adds to, and sums have one order. The registers hold dk and dv
// of heads of up to 128 together; of longer ones each has a kernel of its own.
//
// With x for the block's own rows and y for a tile of the others (first: q or k; second: d_out or v):
//   P from x_first y_firstᵀ,   dS = P * (x_second y_secondᵀ - D) scale (1 - (score / cap)²),   d_first += dS y_first,   dv += P y_second.
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/float.cuh"
#include "kernels/cuda/launch.cuh"

namespace roundhouse {
namespace {

constexpr int kOwn = kAttentionWarps * kFragmentRows;  // rows of a block

// What a kernel computes.
enum class Of { kQueries, kKeys, kValues, kKeysAndValues };

template <int kHeadDim, int kOthers>
struct Shared {
  Rows<kHeadDim, kOwn> x_first;
  Rows<kHeadDim, kOwn> x_second;
  Rows<kHeadDim, kOthers> y_first[2];
  Rows<kHeadDim, kOthers> y_second[2];
};

template <int kHeadDim>
__device__ void store_rows(const float (&sums)[kHeadDim / 8][4], const Matrix& to,
                           std::int64_t start, std::int64_t column, int head_dim, int row,
                           int length) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (row + 8 * half >= length) continue;
    __nv_bfloat16* const at =
        static_cast<__nv_bfloat16*>(to.data) + (start + row + 8 * half) * to.stride + column;
#pragma unroll
    for (int j = 0; j < kHeadDim / 8; ++j) {
      if (j * 8 >= head_dim) break;
      *reinterpret_cast<unsigned*>(at + j * 8) =
          pack_bfloat16(sums[j][2 * half], sums[j][2 * half + 1]);
    }
  }
}

// sums += a y, a [16, kOthers] in fragments of scores.
template <int kHeadDim, int kOthers>
__device__ void add_product(const float (&a)[kOthers / 8][4], Rows<kHeadDim, kOthers>& y, int lane,
                            float (&sums)[kHeadDim / 8][4]) {
#pragma unroll
  for (int j = 0; j < kOthers; j += 16) {
    const float(&low)[4] = a[j / 8];
    const float(&high)[4] = a[j / 8 + 1];
    const unsigned fragment[4] = {pack_bfloat16(low[0], low[1]), pack_bfloat16(low[2], low[3]),
                                  pack_bfloat16(high[0], high[1]), pack_bfloat16(high[2], high[3])};
#pragma unroll
    for (int col = 0; col < kHeadDim; col += 16) {
      unsigned b[4];
      load_matrices_transposed(b, y.piece(j + lane / 8 % 2 * 8 + lane % 8, col + lane / 16 * 8));
      multiply_add(sums[col / 8], fragment, b[0], b[1]);
      multiply_add(sums[col / 8 + 1], fragment, b[2], b[3]);
    }
  }
}

template <int kHeadDim, int kOthers, Of kOf>
__global__ void __launch_bounds__(kAttentionThreads, 2)
    tensor_core_attention_backward_kernel(AttentionBackward op, RowSumsTable sums,
                                          UnscaledCap cap) {
  constexpr bool kOfKeys = kOf != Of::kQueries;
  constexpr bool kFirst = kOf != Of::kValues;                                // d_first is wanted
  constexpr bool kSecond = kOf == Of::kValues || kOf == Of::kKeysAndValues;  // dv is
  using Memory = Shared<kHeadDim, kOthers>;
  Memory& shared = shared_memory<Memory>();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int length = static_cast<int>(op.length);
  const int window = op.window > 0 && op.window < op.length ? static_cast<int>(op.window) : length;
  const int heads = static_cast<int>(op.heads);
  const int head_dim = static_cast<int>(op.head_dim);
  const int group = static_cast<int>(op.heads / op.kv_heads);
  const int my_heads = kOfKeys ? heads / group : heads;
  const int blocks = (length + kOwn - 1) / kOwn;
  const int pieces = static_cast<int>(gridDim.x) / blocks;  // sequences * my_heads
  const int piece = static_cast<int>(blockIdx.x) % pieces;
  // Early keys are seen by most queries and late queries see most keys: their blocks come first.
  const int rank = static_cast<int>(blockIdx.x) / pieces;
  const int begin = (kOfKeys ? rank : blocks - 1 - rank) * kOwn;
  const int my_head = piece % my_heads;
  const std::int64_t sequence = piece / my_heads;
  const std::int64_t start = sequence * length;

  const int first_seen = begin - window + 1 > 0 ? begin - window + 1 : 0;
  const int first = (kOfKeys ? begin : first_seen) / kOthers * kOthers;
  const int last = kOfKeys ? begin + kOwn - 1 + window : begin + kOwn;
  const int end = last < length ? last : length;
  // Tiles of the others, of one head after another.
  const int heads_of_others = kOfKeys ? group : 1;
  const int first_head = kOfKeys ? my_head * group : my_head;
  const auto copy_others = [&](int head, int row, int stage) {
    const std::int64_t column = static_cast<std::int64_t>(kOfKeys ? head : head / group) * head_dim;
    copy_rows(shared.y_first[stage], kOfKeys ? op.q : op.k, start, column, head_dim, row, length);
    copy_rows(shared.y_second[stage], kOfKeys ? op.d_out : op.v, start, column, head_dim, row,
              length);
    commit_copies();
  };

  const std::int64_t my_column = static_cast<std::int64_t>(my_head) * head_dim;
  copy_rows(shared.x_first, kOfKeys ? op.k : op.q, start, my_column, head_dim, begin, length);
  if constexpr (kFirst) {
    copy_rows(shared.x_second, kOfKeys ? op.v : op.d_out, start, my_column, head_dim, begin,
              length);
  }
  copy_others(first_head, first, 0);

  const int my_first = begin + warp * kFragmentRows;
  const int my_last = my_first + kFragmentRows - 1;
  const int my_row = my_first + lane / 4;  // and the eighth after it
  const int pair = lane % 4 * 2;
  const float to_log2 = op.scale * kLog2E;
  RowSums of_mine[2] = {};  // of the lane's two queries
  if constexpr (!kOfKeys) {
    const RowSums* const of_head = sums + (sequence * heads + my_head) * length;
    if (my_row < length) of_mine[0] = of_head[my_row];
    if (my_row + 8 < length) of_mine[1] = of_head[my_row + 8];
  }
  float d_first[kFirst ? kHeadDim / 8 : 1][4] = {};
  float d_second[kSecond ? kHeadDim / 8 : 1][4] = {};

  // What one tile of the others adds.
  const auto work = [&](int head, int other, int stage) {
    const bool none = kOfKeys ? other + kOthers - 1 < my_first || other >= my_last + window
                              : other > my_last || other + kOthers - 1 <= my_first - window;
    if (none) return;

    float p[kOthers / 8][4] = {};      // scores first
    float slope[kOthers / 8][4] = {};  // x_second y_secondᵀ first
#pragma unroll 1                       // more would cost registers
    for (int col = 0; col < kHeadDim; col += 16) {
      unsigned a[4];
      unsigned a_second[4];
      const int row = warp * kFragmentRows + lane % 16;
      load_matrices(a, shared.x_first.piece(row, col + lane / 16 * 8));
      if constexpr (kFirst) {
        load_matrices(a_second, shared.x_second.piece(row, col + lane / 16 * 8));
      }
#pragma unroll
      for (int j = 0; j < kOthers; j += 16) {
        const int y_row = j + lane / 16 * 8 + lane % 8;
        const int y_col = col + lane / 8 % 2 * 8;
        unsigned b[4];
        load_matrices(b, shared.y_first[stage].piece(y_row, y_col));
        multiply_add(p[j / 8], a, b[0], b[1]);
        multiply_add(p[j / 8 + 1], a, b[2], b[3]);
        if constexpr (kFirst) {
          load_matrices(b, shared.y_second[stage].piece(y_row, y_col));
          multiply_add(slope[j / 8], a_second, b[0], b[1]);
          multiply_add(slope[j / 8 + 1], a_second, b[2], b[3]);
        }
      }
    }

    const RowSums* const of_others = sums + (sequence * heads + head) * length + other + pair;
#pragma unroll
    for (int j = 0; j < kOthers / 8; ++j) {
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const int theirs = other + j * 8 + pair + side;
        RowSums of_query = {};
        if constexpr (kOfKeys) {
          if (theirs < length) of_query = of_others[j * 8 + side];
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int mine = my_row + half * 8;
          const int query = kOfKeys ? theirs : mine;
          const int key = kOfKeys ? mine : theirs;
          const bool seen = key <= query && key > query - window && query < length;
          if constexpr (!kOfKeys) of_query = of_mine[half];
          float& score = p[j][2 * half + side];
          float& dp = slope[j][2 * half + side];
          float slope_of_score = op.scale;
          if (cap.inner > 0.0f) {
            const float t = cap.tanh_of(score);
            score = cap.outer * t;
            slope_of_score *= 1.0f - t * t;
          }
          const float softmax = exp2f(score * to_log2 - of_query.log_sum_exp * kLog2E);
          score = seen ? softmax : 0.0f;
          dp = seen ? softmax * (dp - of_query.d) * slope_of_score : 0.0f;
        }
      }
    }
    if constexpr (kFirst) add_product(slope, shared.y_first[stage], lane, d_first);
    if constexpr (kSecond) add_product(p, shared.y_second[stage], lane, d_second);
  };

  int stage = 0;
  int head = first_head;
  int other = first;
  while (head < first_head + heads_of_others) {
    const bool last_of_head = other + kOthers >= end;
    const int next_head = last_of_head ? head + 1 : head;
    const int next_other = last_of_head ? first : other + kOthers;
    wait_for_copies<0>();
    __syncthreads();  // this stage is there for all, and nobody works on the other one any more
    if (next_head < first_head + heads_of_others) copy_others(next_head, next_other, 1 - stage);
    work(head, other, stage);
    stage = 1 - stage;
    head = next_head;
    other = next_other;
  }
  const auto store = [&](const float(&sums_of_mine)[kHeadDim / 8][4], const Matrix& to) {
    store_rows<kHeadDim>(sums_of_mine, to, start, my_column + pair, head_dim, my_row, length);
  };
  if constexpr (kFirst) store(d_first, kOfKeys ? op.dk : op.dq);
  if constexpr (kSecond) store(d_second, op.dv);
}

template <int kHeadDim, int kOthers>
void launch_backward(const AttentionBackward& op, RowSumsTable sums, CudaDevice& device) {
  const std::int64_t blocks = (op.length + kOwn - 1) / kOwn * (op.q.rows / op.length);
  static_assert(sizeof(Shared<kHeadDim, kOthers>) <= kAttentionSharedBytes);
  const auto how = [&](std::int64_t heads) {
    return Launch{.grid = blocks_for(blocks * heads),
                  .threads = kAttentionThreads,
                  .shared_bytes = sizeof(Shared<kHeadDim, kOthers>),
                  .stream = device.stream()};
  };
  const auto start = [&](auto* kernel, std::int64_t heads) {
    launch(kernel, how(heads), op, sums, UnscaledCap(op.scale, op.score_cap));
  };
  start(tensor_core_attention_backward_kernel<kHeadDim, kOthers, Of::kQueries>, op.heads);
  if constexpr (kHeadDim <= 128) {
    start(tensor_core_attention_backward_kernel<kHeadDim, kOthers, Of::kKeysAndValues>,
          op.kv_heads);
  } else {
    start(tensor_core_attention_backward_kernel<kHeadDim, kOthers, Of::kKeys>, op.kv_heads);
    start(tensor_core_attention_backward_kernel<kHeadDim, kOthers, Of::kValues>, op.kv_heads);
  }
}

}  // namespace

bool attention_backward_on_tensor_cores(const AttentionBackward& op, RowSumsTable sums,
                                        CudaDevice& device) {
  const std::int64_t head_dim = op.head_dim;
  for (const ConstMatrix& m :
       {op.q, op.k, op.v, op.d_out, ConstMatrix(op.dq), ConstMatrix(op.dk), ConstMatrix(op.dv)}) {
    if (!in_pieces(m, head_dim)) return false;
  }
  if (head_dim <= 32) {
    launch_backward<32, 64>(op, sums, device);
  } else if (head_dim <= 64) {
    launch_backward<64, 64>(op, sums, device);
  } else if (head_dim <= 96) {
    launch_backward<96, 32>(op, sums, device);
  } else if (head_dim <= 128) {
    launch_backward<128, 32>(op, sums, device);
  } else if (head_dim <= 192) {
    launch_backward<192, 32>(op, sums, device);
  } else {
    launch_backward<256, 16>(op, sums, device);
  }
  return true;
}

}  // namespace roundhouse
