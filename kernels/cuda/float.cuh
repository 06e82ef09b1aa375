// The float types of device memory, and how kernels read and write them: arithmetic is in F32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <string>
#include <type_traits>

#include "base/error.h"
#include "kernels/memory.h"

namespace roundhouse {

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline float to_float(__half value) { return __half2float(value); }

// To nearest, ties to even.
__device__ inline void store_float(float value, float& to) { to = value; }
__device__ inline void store_float(float value, __nv_bfloat16& to) {
  to = __float2bfloat16_rn(value);
}
__device__ inline void store_float(float value, __half& to) { to = __float2half_rn(value); }

// kWidth neighbours, moved by 16 bytes at a time where they are aligned (see can_pack()).
template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth < 16 ? sizeof(T) * kWidth : 16) Pack {
  T at[kWidth];
};
inline constexpr int kPackWidth = 8;

template <int kWidth>
using Floats = Pack<float, kWidth>;

template <class T, int kWidth, class M>  // Matrix or ConstMatrix
__device__ inline Floats<kWidth> load(const M& m, std::int64_t row, std::int64_t col) {
  const T* const from = static_cast<const T*>(m.data) + row * m.stride + col;
  const auto pack = *reinterpret_cast<const Pack<T, kWidth>*>(from);
  Floats<kWidth> values;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) values.at[i] = to_float(pack.at[i]);
  return values;
}

template <class T, int kWidth>
__device__ inline void store(const Floats<kWidth>& values, const Matrix& m, std::int64_t row,
                             std::int64_t col) {
  Pack<T, kWidth> pack;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) store_float(values.at[i], pack.at[i]);
  T* const to = static_cast<T*>(m.data) + row * m.stride + col;
  *reinterpret_cast<Pack<T, kWidth>*>(to) = pack;
}

// Whether all rows can be read in packs of kPackWidth.
inline bool can_pack(const ConstMatrix& m) {
  const std::size_t bytes = size_of(m.type) * kPackWidth;
  const std::size_t alignment = bytes < 16 ? bytes : 16;
  return m.cols % kPackWidth == 0 && (m.rows <= 1 || m.stride % kPackWidth == 0) &&
         reinterpret_cast<std::uintptr_t>(m.data) % alignment == 0;
}

template <class T>
struct TypeTag {
  using type = T;
};

// Calls work(TypeTag<T>()) with the type of the device's elements. Throws Error if it is no float type.
template <class Work>
void with_float_type(DType type, const Work& work) {
  switch (type) {
    case DType::kF32:
      return work(TypeTag<float>());
    case DType::kBF16:
      return work(TypeTag<__nv_bfloat16>());
    case DType::kF16:
      return work(TypeTag<__half>());
    default:
      throw Error("internal error: " + std::string(name_of(type)) + " is no float type");
  }
}
// The same for kernels on weights and activations, which are F32 or BF16.
template <class Work>
void with_activation_type(DType type, const Work& work) {
  require(type == DType::kF32 || type == DType::kBF16, "activations are F32 or BF16");
  if (type == DType::kF32) return work(TypeTag<float>());
  return work(TypeTag<__nv_bfloat16>());
}
// Calls work(std::integral_constant<int, width>()) with kPackWidth or 1.
template <class Work>
void with_width(bool packed, const Work& work) {
  if (packed) return work(std::integral_constant<int, kPackWidth>());
  return work(std::integral_constant<int, 1>());
}

}  // namespace roundhouse
