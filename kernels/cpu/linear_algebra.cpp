#include <algorithm>
#include <vector>

#include "base/error.h"
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

}  // namespace

void CpuBackend::run(const Matmul& op) {
  const std::int64_t m = op.transpose_a ? op.a.cols : op.a.rows;
  const std::int64_t k = op.transpose_a ? op.a.rows : op.a.cols;
  const std::int64_t n = op.transpose_b ? op.b.rows : op.b.cols;
  const float* const a = op.a.f32();
  const float* const b = op.b.f32();
  float* const c = op.c.f32();
  const std::int64_t edge = tile_edge(m, n);
  for_each_tile(threads_, m, n, edge, [&](std::int64_t i, std::int64_t j) {
    sgemm({.m = std::min(edge, m - i),
           .n = std::min(edge, n - j),
           .k = k,
           .a = a + (op.transpose_a ? i : i * op.a.stride),
           .a_stride = op.a.stride,
           .transpose_a = op.transpose_a,
           .b = b + (op.transpose_b ? j * op.b.stride : j),
           .b_stride = op.b.stride,
           .transpose_b = op.transpose_b,
           .c = c + i * op.c.stride + j,
           .c_stride = op.c.stride,
           .alpha = op.alpha,
           .beta = op.beta});
  });
}

void CpuBackend::run(const Linear& op) {
  const std::int64_t m = op.x.rows;
  const std::int64_t n = op.w.rows;
  const std::int64_t k = op.x.cols;
  const float* const x = op.x.f32();
  const float* const w = op.w.f32();
  const float* const bias = op.has_bias() ? op.bias.f32() : nullptr;
  float* const y = op.y.f32();
  const std::int64_t edge = tile_edge(m, n);
  for_each_tile(threads_, m, n, edge, [&](std::int64_t i, std::int64_t j) {
    const std::int64_t height = std::min(edge, m - i);
    const std::int64_t width = std::min(edge, n - j);
    float* const tile = y + i * op.y.stride + j;
    sgemm({.m = height,
           .n = width,
           .k = k,
           .a = x + i * op.x.stride,
           .a_stride = op.x.stride,
           .b = w + j * op.w.stride,
           .b_stride = op.w.stride,
           .transpose_b = true,
           .c = tile,
           .c_stride = op.y.stride,
           .beta = op.accumulate ? 1.0f : 0.0f});
    if (bias == nullptr) return;
    for (std::int64_t row = 0; row < height; ++row) {
      float* const out = tile + row * op.y.stride;
      for (std::int64_t col = 0; col < width; ++col) out[col] += bias[j + col];
    }
  });
}

void CpuBackend::run(const Gram& op) {
  const std::int64_t k = op.x.cols;
  const float* const x = op.x.f32();
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
    for (std::int64_t begin = 0; begin < op.x.rows; begin += kGramSlab) {
      const float* const slab = x + begin * op.x.stride;
      sgemm({.m = height,
             .n = width,
             .k = std::min(kGramSlab, op.x.rows - begin),
             .a = slab + i,
             .a_stride = op.x.stride,
             .transpose_a = true,
             .b = slab + j,
             .b_stride = op.x.stride,
             .c = i == j ? aside.data() : target,
             .c_stride = i == j ? width : op.h.stride,
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

void CpuBackend::run_add(ConstMatrix from, Matrix into) {
  const float* const source = from.f32();
  float* const target = into.f32();
  for_each_range(threads_, into.rows, rows_per_piece(into.cols),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t row = begin; row < end; ++row) {
                     const float* const in = source + row * from.stride;
                     float* const out = target + row * into.stride;
                     for (std::int64_t col = 0; col < into.cols; ++col) out[col] += in[col];
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
