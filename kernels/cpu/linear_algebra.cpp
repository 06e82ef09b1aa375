#include <algorithm>
#include <array>
#include <vector>

#include "base/dtype.h"
#include "base/error.h"
#include "kernels/cpu/bf16_product.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/sgemm.h"
#include "kernels/cpu/transpose.h"

namespace roundhouse {
namespace {

// Rows of x that one product of Gram adds: two slabs of a tile's width stay in a core's
// second-level cache.
constexpr std::int64_t kGramSlab = 512;
constexpr std::int64_t kGramTile = 256;
constexpr std::int64_t kLeastBf16 = 64;  // of the three sizes of a product with BF16 factors

// Calls work(i, j) for the first row and column of each tile of an [m, n] result.
template <class Work>
void for_each_tile(ThreadPool& threads, std::int64_t m, std::int64_t n, std::int64_t edge,
                   const Work& work) {
  const std::int64_t down = (m + edge - 1) / edge;
  const std::int64_t across = (n + edge - 1) / edge;
  for_each_piece(threads, down * across, [&](std::int64_t t) {
    work(t % down * edge, t / down * edge);  // down first: tiles in flight share columns of b
  });
}

// The index that Gather reads for place i.
class Places {
 public:
  Places(const ConstMatrix& index, std::int64_t count, std::int64_t range)
      : index_(index.data != nullptr && index.cols > 0
                   ? static_cast<const std::int32_t*>(index.data)
                   : nullptr) {
    require(index_ == nullptr || std::all_of(index_, index_ + count,
                                             [&](std::int32_t i) { return -1 <= i && i < range; }),
            "gather: an index is out of range");
  }
  std::int64_t operator[](std::int64_t i) const { return index_ == nullptr ? i : index_[i]; }

 private:
  const std::int32_t* index_;
};

template <class T>
void gather_row(const T* from, const Places& cols, T* to, std::int64_t count) {
  for (std::int64_t j = 0; j < count; ++j) to[j] = cols[j] < 0 ? T{0} : from[cols[j]];
}

// `out` may be one of the rows: no element of it meets another of theirs.
void add_up_row(const std::array<const float*, AddUp::kMost>& in, int count, bool accumulate,
                float* out, std::int64_t n) {
  const auto store = [&](const auto& sum) {
    if (accumulate) {
#pragma GCC ivdep
      for (std::int64_t i = 0; i < n; ++i) out[i] += sum(i);
    } else {
#pragma GCC ivdep
      for (std::int64_t i = 0; i < n; ++i) out[i] = sum(i);
    }
  };
  const float *const a = in[0], *const b = in[1], *const c = in[2], *const d = in[3];
  if (count == 1) store([=](std::int64_t i) { return a[i]; });
  if (count == 2) store([=](std::int64_t i) { return a[i] + b[i]; });
  if (count == 3) store([=](std::int64_t i) { return (a[i] + b[i]) + c[i]; });
  if (count == 4) store([=](std::int64_t i) { return (a[i] + b[i]) + (c[i] + d[i]); });
}

}  // namespace

// c (+)= alpha op(a) op(b), in tiles that threads share.
struct CpuBackend::Product {
  std::int64_t m, n, k;
  ConstMatrix a;
  bool transpose_a;
  ConstMatrix b;
  bool transpose_b;
  Matrix c;
  float alpha = 1.0f, beta = 0.0f;
  bool of_activations = true;
  const float* bias = nullptr;  // added to each row
};

// Rounding the factors takes as long as some dozen rows of the product.
bool CpuBackend::in_bf16(std::int64_t m, std::int64_t n, std::int64_t k) const {
  return bf16_ && std::min({m, n, k}) >= kLeastBf16;
}

const std::uint16_t* CpuBackend::rounded(const ConstMatrix& m, int which) {
  std::vector<std::uint16_t>& memory = rounded_[which];
  const auto size = static_cast<std::size_t>(m.rows * m.cols);
  if (memory.size() < size) memory.resize(size);
  const float* const from = m.f32();
  for_each_range(threads_, m.rows, rows_per_piece(m.cols),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t row = begin; row < end; ++row) {
                     convert(DType::kF32, from + row * m.stride, DType::kBF16,
                             memory.data() + row * m.cols, static_cast<std::size_t>(m.cols));
                   }
                 });
  return memory.data();
}

void CpuBackend::multiply_tiles(const Product& op) {
  const float* const a = op.a.f32();
  const float* const b = op.b.f32();
  float* const c = op.c.f32();
  const bool bf16 = op.of_activations && in_bf16(op.m, op.n, op.k);
  const std::uint16_t* const a16 = bf16 ? rounded(op.a, 0) : nullptr;
  const std::uint16_t* const b16 = bf16 ? rounded(op.b, 1) : nullptr;
  const std::int64_t edge = tile_edge(op.m, op.n);
  for_each_tile(threads_, op.m, op.n, edge, [&](std::int64_t i, std::int64_t j) {
    const std::int64_t height = std::min(edge, op.m - i), width = std::min(edge, op.n - j);
    float* const tile = c + i * op.c.stride + j;
    const auto a_at = [&](std::int64_t stride) { return op.transpose_a ? i : i * stride; };
    const auto b_at = [&](std::int64_t stride) { return op.transpose_b ? j * stride : j; };
    if (bf16) {
      bf16_product({.m = height,
                    .n = width,
                    .k = op.k,
                    .a = a16 + a_at(op.a.cols),
                    .a_stride = op.a.cols,
                    .transpose_a = op.transpose_a,
                    .b = b16 + b_at(op.b.cols),
                    .b_stride = op.b.cols,
                    .transpose_b = op.transpose_b,
                    .c = tile,
                    .c_stride = op.c.stride,
                    .accumulate = op.beta != 0.0f});
    } else {
      sgemm({.m = height,
             .n = width,
             .k = op.k,
             .a = a + a_at(op.a.stride),
             .a_stride = op.a.stride,
             .transpose_a = op.transpose_a,
             .b = b + b_at(op.b.stride),
             .b_stride = op.b.stride,
             .transpose_b = op.transpose_b,
             .c = tile,
             .c_stride = op.c.stride,
             .alpha = op.alpha,
             .beta = op.beta});
    }
    if (op.bias == nullptr) return;
    for (std::int64_t row = 0; row < height; ++row) {
      float* const out = tile + row * op.c.stride;
      for (std::int64_t col = 0; col < width; ++col) out[col] += op.bias[j + col];
    }
  });
}

void CpuBackend::run(const Matmul& op) {
  multiply_tiles({.m = op.transpose_a ? op.a.cols : op.a.rows,
                  .n = op.transpose_b ? op.b.rows : op.b.cols,
                  .k = op.transpose_a ? op.a.rows : op.a.cols,
                  .a = op.a,
                  .transpose_a = op.transpose_a,
                  .b = op.b,
                  .transpose_b = op.transpose_b,
                  .c = op.c,
                  .alpha = op.alpha,
                  .beta = op.beta,
                  .of_activations = op.of_activations});
}

void CpuBackend::run(const Linear& op) {
  multiply_tiles({.m = op.x.rows,
                  .n = op.w.rows,
                  .k = op.x.cols,
                  .a = op.x,
                  .transpose_a = false,
                  .b = op.w,
                  .transpose_b = true,
                  .c = op.y,
                  .beta = op.accumulate ? 1.0f : 0.0f,
                  .bias = op.has_bias() ? op.bias.f32() : nullptr});
}

void CpuBackend::run(const Gram& op) {
  const std::int64_t k = op.x.cols;
  const float* const x = op.x.f32();
  const bool bf16 = in_bf16(k, k, op.x.rows);
  const std::uint16_t* const x16 = bf16 ? rounded(op.x, 0) : nullptr;
  float* const h = op.h.f32();
  const std::int64_t tiles = (k + kGramTile - 1) / kGramTile;
  for_each_piece(threads_, tiles * (tiles + 1) / 2, [&](std::int64_t t) {
    // Piece t is tile (i, j) of the lower triangle, counted row by row.
    std::int64_t row = 0;
    while ((row + 1) * (row + 2) / 2 <= t) ++row;
    const std::int64_t i = row * kGramTile;
    const std::int64_t j = (t - row * (row + 1) / 2) * kGramTile;
    const std::int64_t height = std::min(kGramTile, k - i);
    const std::int64_t width = std::min(kGramTile, k - j);
    float* const target = h + i * op.h.stride + j;
    // A tile on the diagonal is summed on the side, since only its lower triangle may be written.
    std::vector<float> aside(i == j ? static_cast<std::size_t>(height * width) : 0);
    for (std::int64_t r = 0; r < height && i == j; ++r) {
      std::copy_n(target + r * op.h.stride, r + 1, aside.data() + r * width);
    }
    float* const sum = i == j ? aside.data() : target;
    const std::int64_t stride = i == j ? width : op.h.stride;
    for (std::int64_t begin = 0; begin < op.x.rows; begin += kGramSlab) {
      const std::int64_t rows = std::min(kGramSlab, op.x.rows - begin);
      if (bf16) {
        const std::uint16_t* const slab = x16 + begin * k;
        bf16_product({.m = height,
                      .n = width,
                      .k = rows,
                      .a = slab + i,
                      .a_stride = k,
                      .transpose_a = true,
                      .b = slab + j,
                      .b_stride = k,
                      .c = sum,
                      .c_stride = stride,
                      .accumulate = true});
        continue;
      }
      const float* const slab = x + begin * op.x.stride;
      sgemm({.m = height,
             .n = width,
             .k = rows,
             .a = slab + i,
             .a_stride = op.x.stride,
             .transpose_a = true,
             .b = slab + j,
             .b_stride = op.x.stride,
             .c = sum,
             .c_stride = stride,
             .beta = 1.0f});
    }
    for (std::int64_t r = 0; r < height && i == j; ++r) {
      std::copy_n(aside.data() + r * width, r + 1, target + r * op.h.stride);
    }
  });
}

void CpuBackend::run_symmetrize(Matrix h) {
  float* const data = h.f32();
  constexpr std::int64_t kEdge = 64;  // a block read by columns stays in the first-level cache
  for_each_range(threads_, h.rows, kEdge, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      for (std::int64_t j = i + 1; j < end; ++j) data[i * h.stride + j] = data[j * h.stride + i];
    }
    for (std::int64_t block = end; block < h.cols; block += kEdge) {
      transpose(data + block * h.stride + begin, h.stride, std::min(kEdge, h.cols - block),
                end - begin, data + begin * h.stride + block, h.stride);
    }
  });
}

void CpuBackend::run_reverse(ConstMatrix from, Matrix to) {
  const float* const source = from.f32();
  float* const target = to.f32();
  for_each_range(threads_, to.rows, rows_per_piece(to.cols),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t row = begin; row < end; ++row) {
                     const float* const in = source + (from.rows - 1 - row) * from.stride;
                     std::reverse_copy(in, in + from.cols, target + row * to.stride);
                   }
                 });
}

void CpuBackend::run(const AddUp& op) {
  float* const target = op.into.f32();
  const std::int64_t cols = op.into.cols;
  const bool more = op.accumulate;
  for_each_range(threads_, op.into.rows, rows_per_piece(cols),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t row = begin; row < end; ++row) {
                     const float* in[AddUp::kMost] = {};
                     for (int i = 0; i < op.count; ++i)
                       in[i] = op.from[i].f32() + row * op.from[i].stride;
                     add_up_row({in[0], in[1], in[2], in[3]}, op.count, more,
                                target + row * op.into.stride, cols);
                   }
                 });
}

void CpuBackend::run_scale(float factor, Matrix m) {
  float* const data = m.f32();
  for_each_range(threads_, m.rows, rows_per_piece(m.cols),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t row = begin; row < end; ++row) {
                     float* const values = data + row * m.stride;
                     for (std::int64_t col = 0; col < m.cols; ++col) values[col] *= factor;
                   }
                 });
}

void CpuBackend::run(const Gather& op) {
  const Places rows(op.rows, op.to.rows, op.from.rows);
  const Places cols(op.cols, op.to.cols, op.from.cols);
  const auto gather_rows = [&](const auto* from, auto* to) {
    for_each_range(threads_, op.to.rows, rows_per_piece(op.to.cols),
                   [&](std::int64_t begin, std::int64_t end) {
                     for (std::int64_t row = begin; row < end; ++row) {
                       auto* const target = to + row * op.to.stride;
                       if (rows[row] < 0) {
                         std::fill_n(target, op.to.cols, 0);
                       } else {
                         gather_row(from + rows[row] * op.from.stride, cols, target, op.to.cols);
                       }
                     }
                   });
  };
  if (op.to.type == DType::kF32) {
    gather_rows(op.from.f32(), op.to.f32());
  } else {
    gather_rows(static_cast<const std::uint8_t*>(op.from.data),
                static_cast<std::uint8_t*>(op.to.data));
  }
}

}  // namespace roundhouse
