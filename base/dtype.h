// Element types and the 16-bit floats.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace roundhouse {

enum class DType { kF32, kF16, kBF16, kU8, kI32, kI64, kU32 };

std::size_t size_of(DType type);  // bytes
// The names of safetensors: "F32", "F16", "BF16", "U8", "I32", "I64", "U32".
std::string_view name_of(DType type);
std::optional<DType> dtype_from_name(std::string_view name);
// The names of Hugging Face configs: "float32", "float16", "bfloat16"; only these three types.
std::string_view torch_name_of(DType type);

// Bits of a float16 / bfloat16 and back. To 16 bits: round to nearest, ties to even; a float16 overflow gives infinity.
std::uint16_t float_to_half(float value);
float half_to_float(std::uint16_t bits);
inline float bfloat16_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}
std::uint16_t float_to_bfloat16(float value);

// The value that a float16 can hold, nearest to `value`.
inline float round_to_half(float value) { return half_to_float(float_to_half(value)); }

// The value that a float type can hold, nearest to `value`.
float rounded_to(DType type, float value);

// n elements between any two of F32, F16, BF16 (equal types: a copy). Unaligned input is fine.
void convert(DType from_type, const void* from, DType to_type, void* to, std::size_t n);

}  // namespace roundhouse
