// A warp has kRowsEach rows of weights and reads each vector once for them: its lanes take every 32nd unit of 32 codes, which
// lie side by side. Codes become floats as the low bits of 2^23 + code, without a conversion; tables lie in shared memory,
// where the entries of one lie in different banks. No sum is split over warps, so there are no atomics.
#include <algorithm>

#include "kernels/cuda/block.cuh"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/float.cuh"
#include "kernels/cuda/sparse_row.cuh"
#include "kernels/packed_unit.h"

namespace roundhouse {
namespace {

constexpr int kRowsEach = 4;
constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kUnit = static_cast<int>(kPackedUnit);
constexpr int kMostEntries = 16;  // of a table

template <class T>
struct alignas(16) UnitOf {
  T at[kUnit];
};

// Columns from `first` on; 0 beyond the last one.
template <class T>
__device__ void load_unit(const T* x, int first, int cols, bool aligned, float (&values)[kUnit]) {
  if (aligned && first + kUnit <= cols) {
    const auto unit = *reinterpret_cast<const UnitOf<T>*>(x + first);
#pragma unroll
    for (int i = 0; i < kUnit; ++i) values[i] = to_float(unit.at[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < kUnit; ++i) values[i] = first + i < cols ? to_float(x[first + i]) : 0.0f;
}

template <int kBits>
struct Words {
  std::uint32_t at[kBits];
};

template <int kBits>
__device__ Words<kBits> load_words(const std::uint32_t* from, bool aligned) {
  Words<kBits> words;
  if constexpr (kBits == 4) {
    if (aligned) {
      const uint4 four = *reinterpret_cast<const uint4*>(from);
      return {{four.x, four.y, four.z, four.w}};
    }
  }
#pragma unroll
  for (int i = 0; i < kBits; ++i) words.at[i] = from[i];
  return words;
}

__device__ float exact_float(unsigned code) {
  const unsigned bits = 0x4b000000u | code;  // 2^23 + code
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

template <class T, int kBits>
struct UniformRow {
  using Op = UniformProduct;
  static constexpr bool kHasTable = false;
  __device__ static float multiply(const Op& op, std::int64_t row, int unit, const float*,
                                   const Words<kBits>& words, const float (&x)[kUnit]) {
    const int group = unit * kUnit / static_cast<int>(op.group_size);
    const float scale =
        __half2float(static_cast<const __half*>(op.scales.data)[row * op.scales.stride + group]);
    const float zero =
        exact_float(static_cast<const std::uint8_t*>(op.zeros.data)[row * op.zeros.stride + group]);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kUnit; ++i)
      sum += (exact_float(code_in_unit<kBits>(words.at, i)) - zero) * x[i];
    return scale * sum;
  }
};

template <class T, int kBits>
struct TableRow {
  using Op = TableProduct;
  static constexpr bool kHasTable = true;
  __device__ static float multiply(const Op&, std::int64_t, int, const float* table,
                                   const Words<kBits>& words, const float (&x)[kUnit]) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kUnit; ++i) sum += table[code_in_unit<kBits>(words.at, i)] * x[i];
    return sum;
  }
};

// The grid's y is the row of x.
template <class T, int kBits, template <class, int> class Row>
__global__ void __launch_bounds__(kThreads)
    quantized_product_kernel(typename Row<T, kBits>::Op op, bool x_aligned, bool packed_aligned) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp,
            warp = static_cast<int>(threadIdx.x) / kWarp;
  const std::int64_t rows = op.packed.rows;
  const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * kWarps + warp) * kRowsEach;
  if (first >= rows) return;
  const int rows_here = static_cast<int>(rows - first < kRowsEach ? rows - first : kRowsEach);
  float* const tables = reinterpret_cast<float*>(dynamic_shared) + warp * kRowsEach * kMostEntries;
  if constexpr (Row<T, kBits>::kHasTable) {
    constexpr int kEntries = 1 << kBits;
    for (int i = lane; i < rows_here * kEntries; i += kWarp) {
      tables[i / kEntries * kMostEntries + i % kEntries] = static_cast<const float*>(
          op.tables.data)[(first + i / kEntries) * op.tables.stride + i % kEntries];
    }
    __syncwarp();
  }
  const int cols = static_cast<int>(op.x.cols);
  const T* const x =
      static_cast<const T*>(op.x.data) + static_cast<std::int64_t>(blockIdx.y) * op.x.stride;
  float sums[kRowsEach] = {};
  for (int unit = lane; unit * kUnit < cols; unit += kWarp) {
    float values[kUnit];
    load_unit(x, unit * kUnit, cols, x_aligned, values);
#pragma unroll
    for (int r = 0; r < kRowsEach; ++r) {
      if (r >= rows_here) break;
      const auto* const packed =
          static_cast<const std::uint32_t*>(op.packed.data) + (first + r) * op.packed.stride;
      const Words<kBits> words = load_words<kBits>(packed + unit * kBits, packed_aligned);
      sums[r] +=
          Row<T, kBits>::multiply(op, first + r, unit, tables + r * kMostEntries, words, values);
    }
  }
#pragma unroll
  for (int r = 0; r < kRowsEach; ++r) {
    if (r >= rows_here) break;
    if constexpr (Row<T, kBits>::kHasTable) {
      for_each_entry(op.sparse, first + r, cols, [&](std::int64_t column, float value) {
        sums[r] += value * to_float(x[column]);
      });
      __syncwarp();
    }
    const float sum = warp_reduce(sums[r], Plus());
    if (lane == 0) {
      T* const y = static_cast<T*>(op.y.data) + static_cast<std::int64_t>(blockIdx.y) * op.y.stride;
      store_float(sum, y[first + r]);
    }
  }
}

bool begins_at_16_bytes(const ConstMatrix& m) {
  const std::size_t stride = static_cast<std::size_t>(m.stride) * size_of(m.type);
  return reinterpret_cast<std::uintptr_t>(m.data) % 16 == 0 && (m.rows <= 1 || stride % 16 == 0);
}

template <template <class, int> class Row, class Op>
void multiply_rows(const Op& op, cudaStream_t stream) {
  constexpr std::int64_t kMostVectors = 65535;  // of a grid's y dimension
  require(op.x.rows <= kMostVectors,
          "a product of quantized weights: more vectors than a grid has");
  check_columns(op.x.cols);
  with_float_type(op.x.type, [&](auto type) {
    with_packed_bits(op.bits, [&](auto bits) {
      launch(quantized_product_kernel<typename decltype(type)::type, bits(), Row>,
             {.grid = dim3(blocks_for(op.packed.rows, kWarps * kRowsEach),
                           static_cast<unsigned>(op.x.rows)),
              .threads = kThreads,
              .shared_bytes = sizeof(float[kWarps * kRowsEach * kMostEntries]),
              .stream = stream},
             op, begins_at_16_bytes(op.x), begins_at_16_bytes(op.packed));
    });
  });
}

// A unit of codes.
template <int kBits>
struct PackUnit {
  PackCodes op;
  __device__ void operator()(std::int64_t row, std::int64_t unit) const {
    const auto* const codes =
        static_cast<const std::uint8_t*>(op.codes.data) + row * op.codes.stride;
    Words<kBits> words = {};
#pragma unroll
    for (int i = 0; i < kUnit; ++i) {
      const std::int64_t col = unit * kUnit + i;
      put_in_unit<kBits>(words.at, i, col < op.codes.cols ? codes[col] : 0u);
    }
    auto* const to =
        static_cast<std::uint32_t*>(op.packed.data) + row * op.packed.stride + unit * kBits;
#pragma unroll
    for (int i = 0; i < kBits; ++i) to[i] = words.at[i];
  }
};

}  // namespace

void CudaBackend::run(const PackCodes& op) {
  with_packed_bits(op.bits, [&](auto bits) {
    for_each_element(op.codes.rows, op.packed.cols / bits(), 1, device_->stream(),
                     PackUnit<bits()>{op});
  });
}

void CudaBackend::run(const UniformProduct& op) {
  UniformProduct with_int_group = op;
  with_int_group.group_size = std::min(op.group_size, std::max<std::int64_t>(op.x.cols, 1));
  if (with_int_group.group_size == op.x.cols)
    with_int_group.group_size += kPackedUnit;  // whole rows: group 0
  multiply_rows<UniformRow>(with_int_group, device_->stream());
}

void CudaBackend::run(const TableProduct& op) { multiply_rows<TableRow>(op, device_->stream()); }

}  // namespace roundhouse
