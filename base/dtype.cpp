#include "base/dtype.h"

#include <algorithm>
#include <array>
#include <cstring>

#include <fmt/format.h>

#include "base/error.h"

namespace roundhouse {
namespace {

struct TypeFacts {
  DType type;
  std::size_t bytes;
  std::string_view name;
  std::string_view torch_name;  // empty: no model is stored in this type
};

constexpr std::array kTypes{
    TypeFacts{DType::kF32, 4, "F32", "float32"},    TypeFacts{DType::kF16, 2, "F16", "float16"},
    TypeFacts{DType::kBF16, 2, "BF16", "bfloat16"}, TypeFacts{DType::kU8, 1, "U8", ""},
    TypeFacts{DType::kI32, 4, "I32", ""},           TypeFacts{DType::kI64, 8, "I64", ""},
    TypeFacts{DType::kU32, 4, "U32", ""},
};

const TypeFacts& facts(DType type) {
  for (const TypeFacts& f : kTypes) {
    if (f.type == type) return f;
  }
  throw Error(fmt::format("internal error: not an element type: {}", static_cast<int>(type)));
}

// The four conversions are written without branches, so that the loops below become vector code.

inline std::uint16_t half_from_bits(std::uint32_t bits) {
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  // Normal result: rebias the exponent by 127 - 15 and round the 13 dropped bits, ties to even. A
  // carry out of the mantissa moves on to the exponent, as it should, up to infinity.
  const std::uint32_t normal =
      (magnitude - (112u << 23) + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  // Result below 2^-14: at 0.5 a float's last bit is worth 2^-24, the smallest half, so the
  // addition rounds.
  const std::uint32_t tiny =
      std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  const std::uint32_t nan = 0x7e00u | ((magnitude >> 13) & 0x03ffu);
  std::uint32_t half = magnitude < 0x38800000u ? tiny : normal;  // 2^-14
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;              // 65520 and more round to infinity
  half = magnitude > 0x7f800000u ? nan : half;
  return static_cast<std::uint16_t>(half | sign);
}

inline float half_value(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  const std::uint32_t magnitude = static_cast<std::uint32_t>(bits & 0x7fffu) << 13;
  // The product is exact, and makes a half's subnormals normal.
  const std::uint32_t finite =
      std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  const std::uint32_t special = magnitude | 0x7f800000u;
  return std::bit_cast<float>((magnitude >= 0x0f800000u ? special : finite) | sign);
}

inline std::uint16_t bfloat16_from_bits(std::uint32_t bits) {
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const std::uint32_t nan = (bits >> 16) | 0x0040u;
  return static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

// Elements at any address, of any declared type: views into mapped files are not aligned.
using LooseFloat [[gnu::may_alias, gnu::aligned(1)]] = float;
using LooseU32 [[gnu::may_alias, gnu::aligned(1)]] = std::uint32_t;
using LooseU16 [[gnu::may_alias, gnu::aligned(1)]] = std::uint16_t;

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void halves_to_floats(
    const LooseU16* from, LooseFloat* to, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) to[i] = half_value(from[i]);
}

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void floats_to_halves(
    const LooseU32* from, LooseU16* to, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) to[i] = half_from_bits(from[i]);
}

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void bfloat16s_to_floats(
    const LooseU16* from, LooseU32* to, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) to[i] = static_cast<std::uint32_t>(from[i]) << 16;
}

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void floats_to_bfloat16s(
    const LooseU32* from, LooseU16* to, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) to[i] = bfloat16_from_bits(from[i]);
}

bool is_float(DType type) {
  return type == DType::kF32 || type == DType::kF16 || type == DType::kBF16;
}

}  // namespace

std::size_t size_of(DType type) { return facts(type).bytes; }

std::string_view name_of(DType type) { return facts(type).name; }

std::optional<DType> dtype_from_name(std::string_view name) {
  for (const TypeFacts& f : kTypes) {
    if (f.name == name) return f.type;
  }
  return std::nullopt;
}

std::string_view torch_name_of(DType type) {
  const std::string_view name = facts(type).torch_name;
  if (name.empty()) {
    throw Error("internal error: no model is stored as " + std::string(name_of(type)));
  }
  return name;
}

std::uint16_t float_to_half(float value) {
  return half_from_bits(std::bit_cast<std::uint32_t>(value));
}

float half_to_float(std::uint16_t bits) { return half_value(bits); }

std::uint16_t float_to_bfloat16(float value) {
  return bfloat16_from_bits(std::bit_cast<std::uint32_t>(value));
}

float rounded_to(DType type, float value) {
  if (type == DType::kF16) return round_to_half(value);
  if (type == DType::kBF16) return bfloat16_to_float(float_to_bfloat16(value));
  return value;
}

void convert(DType from_type, const void* from, DType to_type, void* to, std::size_t n) {
  require(is_float(from_type) && is_float(to_type), "convert() is for F32, F16 and BF16");
  if (n == 0) return;
  if (from_type == to_type) {
    std::memcpy(to, from, n * size_of(from_type));
  } else if (from_type == DType::kF16 && to_type == DType::kF32) {
    halves_to_floats(static_cast<const LooseU16*>(from), static_cast<LooseFloat*>(to), n);
  } else if (from_type == DType::kBF16 && to_type == DType::kF32) {
    bfloat16s_to_floats(static_cast<const LooseU16*>(from), static_cast<LooseU32*>(to), n);
  } else if (from_type == DType::kF32 && to_type == DType::kF16) {
    floats_to_halves(static_cast<const LooseU32*>(from), static_cast<LooseU16*>(to), n);
  } else if (from_type == DType::kF32) {
    floats_to_bfloat16s(static_cast<const LooseU32*>(from), static_cast<LooseU16*>(to), n);
  } else {
    // Between the two 16-bit types by way of F32, which holds both exactly.
    std::array<float, 1024> exact;
    for (std::size_t done = 0; done < n; done += exact.size()) {
      const std::size_t part = std::min(exact.size(), n - done);
      convert(from_type, static_cast<const std::byte*>(from) + 2 * done, DType::kF32, exact.data(),
              part);
      convert(DType::kF32, exact.data(), to_type, static_cast<std::byte*>(to) + 2 * done, part);
    }
  }
}

}  // namespace roundhouse
