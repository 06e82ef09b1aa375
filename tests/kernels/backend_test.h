// What the contract tests of the kernels share: they run once for each backend that was built, and
// are skipped where a backend has no device.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "base/random.h"
#include "kernels/backend.h"
#include "tests/reference/reference.h"

namespace roundhouse {

class BackendTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (!has_device(GetParam())) GTEST_SKIP() << "no device for " << GetParam() << " here";
    backend_ = make_backend(GetParam(), {});
  }
  Backend& backend() { return *backend_; }

  // The same computation on backends that differ in their number of threads (and twice on the same,
  // which is all that a GPU can show) must give the same bits. `compute` takes a Backend& and
  // returns a reference::Matrix.
  template <class Compute>
  void expect_same_bits_with_any_threads(const Compute& compute) {
    const reference::Matrix first = compute(*backend_);
    for (const int threads : {1, 2, 3}) {
      const auto other = make_backend(GetParam(), {.threads = threads});
      const reference::Matrix result = compute(*other);
      ASSERT_EQ(result.values.size(), first.values.size());
      EXPECT_EQ(std::memcmp(result.values.data(), first.values.data(),
                            first.values.size() * sizeof(double)),
                0)
          << "with " << threads << " threads, a result of " << first.rows << " x " << first.cols;
    }
  }

 private:
  std::unique_ptr<Backend> backend_;
};

// Normal random numbers that float32 holds exactly.
inline reference::Matrix random_matrix(std::int64_t rows, std::int64_t cols, std::uint64_t seed,
                                       double scale = 1.0) {
  Random random(seed);
  reference::Matrix m(rows, cols);
  for (double& value : m.values) {
    value = static_cast<double>(static_cast<float>(random.normal() * scale));
  }
  return m;
}

inline reference::Matrix constant_matrix(std::int64_t rows, std::int64_t cols, double value) {
  reference::Matrix m(rows, cols);
  std::fill(m.values.begin(), m.values.end(), value);
  return m;
}

// Random and well conditioned: G Gᵀ / n + I / 100.
inline reference::Matrix positive_definite(std::int64_t n, std::uint64_t seed) {
  const reference::Matrix g = random_matrix(n, n, seed);
  reference::Matrix a = reference::product(g, reference::transpose(g));
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      const double damping = i == j ? 0.01 : 0.0;
      a(i, j) = static_cast<double>(static_cast<float>(a(i, j) / static_cast<double>(n) + damping));
    }
  }
  return a;
}

// How a test lays a matrix out: its type, and how many elements lie between its rows. Kernels for a GPU have one path for
// rows that begin at multiples of 16 bytes and one for all others.
struct Layout {
  DType type = DType::kF32;
  std::int64_t extra = 3;
};

// Heads that fill no tile of a GPU's kernels, of each size that those are compiled for, and some that do.
inline constexpr std::array<std::int64_t, 13> kHeadSizes{8,   16,  24,  40,  72,  80, 96,
                                                         112, 120, 160, 192, 248, 256};

// All in which this backend takes weights and activations.
inline std::vector<Layout> layouts(const Backend& backend) {
  if (backend.activation_type() == DType::kF32) return {{}};
  return {{DType::kF32, 3}, {DType::kF32, 8}, {DType::kBF16, 3}, {DType::kBF16, 8}};
}

// The values that the type can hold, so that a reference starts from what a kernel sees.
inline reference::Matrix rounded(DType type, reference::Matrix m) {
  for (double& value : m.values) {
    const float single = static_cast<float>(value);
    float stored = single;
    if (type == DType::kBF16) stored = bfloat16_to_float(float_to_bfloat16(single));
    if (type == DType::kF16) stored = round_to_half(single);
    value = static_cast<double>(stored);
  }
  return m;
}

// For expect_near, with what a result in F32 may be off: one in BF16 is rounded by up to 2^-9 of itself, and so may be a
// factor within (attention's probabilities).
inline double tolerance(DType type, double of_f32) {
  return type == DType::kF32 ? of_f32 : std::max(of_f32, 0x1p-8);
}

// A matrix on a backend, as a column range of a wider one: kernels have to mind the stride. Rows
// end in NaN, which shows where something reads past them.
class Wide {
 public:
  Wide(Memory& memory, const reference::Matrix& values, DType type = DType::kF32)
      : Wide(memory, values, Layout{.type = type}) {}
  Wide(Memory& memory, const reference::Matrix& values, const Layout& layout)
      : tensor_(memory, layout.type, values.rows, values.cols + layout.extra), cols_(values.cols) {
    const std::size_t width = static_cast<std::size_t>(values.cols + layout.extra);
    const std::size_t count = static_cast<std::size_t>(values.rows) * width;
    if (layout.type == DType::kU8) {
      std::vector<std::uint8_t> host(count, 255);
      fill(host, values, width);
      memory.upload(std::as_bytes(std::span(host)), tensor_.view().data);
      memory.sync();
      return;
    }
    std::vector<float> host(count, std::numeric_limits<float>::quiet_NaN());
    fill(host, values, width);
    std::vector<std::byte> converted(count * size_of(layout.type));
    convert(DType::kF32, host.data(), layout.type, converted.data(), count);
    memory.upload(converted, tensor_.view().data);
    memory.sync();
  }
  Matrix view() { return tensor_.view().col_range(0, cols_); }
  operator Matrix() { return view(); }       // NOLINT: stands for its matrix
  operator ConstMatrix() { return view(); }  // NOLINT

 private:
  template <class T>
  static void fill(std::vector<T>& host, const reference::Matrix& values, std::size_t width) {
    for (std::int64_t i = 0; i < values.rows; ++i) {
      for (std::int64_t j = 0; j < values.cols; ++j) {
        host[static_cast<std::size_t>(i) * width + static_cast<std::size_t>(j)] =
            static_cast<T>(values(i, j));
      }
    }
  }
  Tensor tensor_;
  std::int64_t cols_;
};

inline reference::Matrix download(Memory& memory, const ConstMatrix& m) {
  reference::Matrix values(m.rows, m.cols);
  for (std::int64_t i = 0; i < m.rows && m.cols > 0; ++i) {
    std::vector<std::byte> row(static_cast<std::size_t>(m.cols) * size_of(m.type));
    memory.download(m.row_range(i, i + 1).data, row);
    for (std::int64_t j = 0; j < m.cols; ++j) {
      const std::size_t at = static_cast<std::size_t>(j);
      if (m.type == DType::kU8) {
        values(i, j) = std::to_integer<int>(row[at]);
      } else {
        float value;
        convert(m.type, row.data() + at * size_of(m.type), DType::kF32, &value, 1);
        values(i, j) = static_cast<double>(value);
      }
    }
  }
  return values;
}

// |got - want| <= tolerance times the largest |want|; NaN only where NaN is wanted. Names the first
// element that is off.
inline void expect_near(const reference::Matrix& got, const reference::Matrix& want,
                        double tolerance, const std::string& what = "") {
  ASSERT_EQ(got.rows, want.rows) << what;
  ASSERT_EQ(got.cols, want.cols) << what;
  double largest = 0.0;
  for (const double value : want.values) {
    if (std::isfinite(value)) largest = std::max(largest, std::abs(value));
  }
  for (std::int64_t i = 0; i < want.rows; ++i) {
    for (std::int64_t j = 0; j < want.cols; ++j) {
      const bool both_nan = std::isnan(got(i, j)) && std::isnan(want(i, j));
      const bool near = std::abs(got(i, j) - want(i, j)) <= tolerance * largest;
      ASSERT_TRUE(both_nan || near)
          << what << " (" << i << ", " << j << ") of " << want.rows << " x " << want.cols << ": "
          << got(i, j) << ", wanted " << want(i, j) << ", largest " << largest;
    }
  }
}

inline std::string backend_name(const testing::TestParamInfo<std::string>& parameter) {
  return parameter.param;
}

}  // namespace roundhouse
