// The panel of GPTQ. Rows are independent, so a tile of kRows rows is held transposed (a column of
// the panel is then kRows neighbouring floats) and every step is vector code over rows. Inside the
// panel, steps go in groups of kSteps: the errors of a group stay in registers while one pass
// applies all of them to the columns that follow.
#include <algorithm>
#include <vector>

#include "base/error.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/transpose.h"
#include "kernels/cpu/vector_math.h"

namespace roundhouse {
namespace {

constexpr std::int64_t kRows = 2 * kLanes;
constexpr std::int64_t kSteps = 8;

// U's panel, padded to whole groups of steps: the coefficients that group g applies to column j are
// the kSteps floats at values[(g * width + j) * kSteps]. Padding columns have 1 on the diagonal and
// 0 beside it: they change nothing.
struct PackedU {
  explicit PackedU(const ConstMatrix& u)
      : width((u.cols + kSteps - 1) / kSteps * kSteps),
        values(static_cast<std::size_t>(width * width), 0.0f) {
    const float* const from = u.f32();
    for (std::int64_t i = 0; i < width; ++i) {
      for (std::int64_t j = i; j < width; ++j) {
        const float padding = i == j ? 1.0f : 0.0f;
        values[((i / kSteps) * width + j) * kSteps + i % kSteps] =
            j < u.cols ? from[i * u.stride + j] : padding;
      }
    }
  }
  const float* at(std::int64_t group, std::int64_t column) const {
    return values.data() + (group * width + column) * kSteps;
  }

  std::int64_t width;
  std::vector<float> values;
};

// One tile, column by column. Rows past the end of the matrix hold zeros on a grid of scale 1.
struct Tile {
  explicit Tile(std::int64_t width)
      : memory(static_cast<std::size_t>(5 * width * kRows)),
        w(memory.data()),
        scale(w + width * kRows),
        zero(scale + width * kRows),
        code(zero + width * kRows),
        rows(code + width * kRows) {}
  std::vector<float> memory;
  float* w;  // the working weights; a done column holds its errors
  float* scale;
  float* zero;
  float* code;
  float* rows;  // zeros or codes row by row, on their way between bytes and columns
  float loss[kRows];
};

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void to_floats(
    const std::uint8_t* from, std::int64_t n, float* to) {
  for (std::int64_t i = 0; i < n; ++i) to[i] = from[i];
}

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void to_bytes(
    const float* from, std::int64_t n, std::uint8_t* to) {
  for (std::int64_t i = 0; i < n; ++i) to[i] = static_cast<std::uint8_t>(static_cast<int>(from[i]));
}

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void solve_tile(
    const PackedU& u, int qmax, Tile& tile) {
  for (std::int64_t first = 0; first < u.width; first += kSteps) {
    const std::int64_t group = first / kSteps;
    for (std::int64_t step = 0; step < kSteps; ++step) {
      const std::int64_t column = first + step;
      float* const w = tile.w + column * kRows;
      const float* const scale = tile.scale + column * kRows;
      const float* const zero = tile.zero + column * kRows;
      float* const code = tile.code + column * kRows;
      const float diagonal = u.at(group, column)[step];
      for (std::int64_t r = 0; r < kRows; ++r) {
        const int z = static_cast<int>(zero[r]);
        const int c = code_of(w[r], scale[r], z, qmax);
        const float error = (w[r] - value_of(c, scale[r], z)) / diagonal;
        code[r] = static_cast<float>(c);
        w[r] = error;
        tile.loss[r] += 0.5f * error * error;
      }
      for (std::int64_t j = column + 1; j < first + kSteps; ++j) {
        const float factor = u.at(group, j)[step];
        float* const later = tile.w + j * kRows;
        for (std::int64_t r = 0; r < kRows; ++r) later[r] -= w[r] * factor;
      }
    }

    const Lanes* const errors = reinterpret_cast<const Lanes*>(tile.w + first * kRows);
    Lanes e0[kSteps];
    Lanes e1[kSteps];
    for (std::int64_t step = 0; step < kSteps; ++step) {
      e0[step] = errors[2 * step];
      e1[step] = errors[2 * step + 1];
    }
    for (std::int64_t j = first + kSteps; j < u.width; ++j) {
      const float* const factor = u.at(group, j);
      Lanes* const later = reinterpret_cast<Lanes*>(tile.w + j * kRows);
      Lanes w0 = later[0];
      Lanes w1 = later[1];
#pragma GCC unroll 8
      for (std::int64_t step = 0; step < kSteps; ++step) {
        w0 -= e0[step] * factor[step];
        w1 -= e1[step] * factor[step];
      }
      later[0] = w0;
      later[1] = w1;
    }
  }
}

}  // namespace

void CpuBackend::run(const GptqPanel& op) {
  const std::int64_t rows = op.w.rows;
  const std::int64_t cols = op.w.cols;
  if (rows == 0 || cols == 0) return;

  const PackedU u(op.u);
  const int qmax = (1 << op.bits) - 1;
  float* const w = op.w.f32();
  const float* const scales = op.scales.f32();
  const std::uint8_t* const zeros = static_cast<const std::uint8_t*>(op.zeros.data);
  std::uint8_t* const codes = static_cast<std::uint8_t*>(op.codes.data);
  float* const errors = op.errors.f32();
  float* const row_loss = op.row_loss.f32();

  for_each_range(threads_, rows, kRows, [&](std::int64_t begin, std::int64_t end) {
    Tile tile(u.width);
    std::fill_n(tile.scale, u.width * kRows, 1.0f);
    std::fill_n(tile.loss, kRows, 0.0f);
    const std::int64_t count = end - begin;
    transpose(w + begin * op.w.stride, op.w.stride, count, cols, tile.w, kRows);
    transpose(scales + begin * op.scales.stride, op.scales.stride, count, cols, tile.scale, kRows);
    for (std::int64_t r = 0; r < count; ++r) {
      to_floats(zeros + (begin + r) * op.zeros.stride, cols, tile.rows + r * u.width);
    }
    transpose(tile.rows, u.width, count, cols, tile.zero, kRows);
    solve_tile(u, qmax, tile);
    transpose(tile.w, kRows, cols, count, errors + begin * op.errors.stride, op.errors.stride);
    transpose(tile.code, kRows, cols, count, tile.rows, u.width);
    for (std::int64_t r = 0; r < count; ++r) {
      to_bytes(tile.rows + r * u.width, cols, codes + (begin + r) * op.codes.stride);
    }
    for (std::int64_t r = 0; r < count; ++r) {
      row_loss[(begin + r) * op.row_loss.stride] += tile.loss[r];
    }
  });
}

}  // namespace roundhouse
