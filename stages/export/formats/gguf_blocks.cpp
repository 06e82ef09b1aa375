#include "stages/export/formats/gguf_blocks.h"

#include <cstring>

#include "base/error.h"

namespace roundhouse {
namespace {

using Byte = std::uint8_t;

// What a block is made of: codes of its columns, and the scale and zero point of the group that they are in.
struct Source {
  const Byte* codes;
  std::uint16_t scale;  // a float16
  int zero;

  int integer(int i) const { return codes[i] - zero; }
};

void put_half(Byte* to, std::uint16_t half) { std::memcpy(to, &half, sizeof half); }

void pack_q4_0(const Source& from, Byte* block) {
  put_half(block, from.scale);
  for (int i = 0; i < 16; ++i)
    block[2 + i] = static_cast<Byte>((from.integer(i) + 8) | (from.integer(i + 16) + 8) << 4);
}

void pack_q5_0(const Source& from, Byte* block) {
  put_half(block, from.scale);
  std::uint32_t high = 0;
  for (int i = 0; i < 32; ++i) high |= static_cast<std::uint32_t>(from.integer(i) + 16) >> 4 << i;
  std::memcpy(block + 2, &high, sizeof high);
  for (int i = 0; i < 16; ++i) {
    block[6 + i] =
        static_cast<Byte>(((from.integer(i) + 16) & 15) | ((from.integer(i + 16) + 16) & 15) << 4);
  }
}

void pack_q8_0(const Source& from, Byte* block) {
  put_half(block, from.scale);
  for (int i = 0; i < 32; ++i) block[2 + i] = static_cast<Byte>(from.integer(i));
}

// Weight i is in byte i / 128 * 32 + i % 32, at bits 2 (i % 128 / 32).
void pack_pairs(const Source& from, Byte* pairs) {
  for (int i = 0; i < 256; ++i)
    pairs[i / 128 * 32 + i % 32] |= static_cast<Byte>((from.codes[i] & 3) << (i % 128 / 32 * 2));
}

void pack_q2_k(const Source& from, Byte* block) {
  std::memset(block, 1 | from.zero << 4, 16);
  pack_pairs(from, block + 16);
  put_half(block + 80, from.scale);
  put_half(block + 82, from.scale);
}

void pack_q3_k(const Source& from, Byte* block) {
  for (int i = 0; i < 256; ++i) block[i % 32] |= static_cast<Byte>(from.codes[i] >> 2 << i / 32);
  pack_pairs(from, block + 32);
  // Sixteen scales of 6 bits, each 1 + 32: the four low ones of each, then the two high ones.
  std::memset(block + 96, 0x11, 8);
  std::memset(block + 104, 0xaa, 4);
  put_half(block + 108, from.scale);
}

void pack_q4_k(const Source& from, Byte* block) {
  put_half(block, from.scale);
  put_half(block + 2, from.scale);
  // Eight scales and eight offsets of 6 bits, which need no more than 4.
  std::memset(block + 4, 1, 4);
  std::memset(block + 8, from.zero, 4);
  std::memset(block + 12, 1 | from.zero << 4, 4);
  for (int i = 0; i < 128; ++i) {
    const int low = i / 32 * 64 + i % 32;
    block[16 + i] = static_cast<Byte>(from.codes[low] | from.codes[low + 32] << 4);
  }
}

void pack(const Source& from, GgmlType type, Byte* block) {
  switch (type) {
    case GgmlType::kQ4_0:
      return pack_q4_0(from, block);
    case GgmlType::kQ5_0:
      return pack_q5_0(from, block);
    case GgmlType::kQ8_0:
      return pack_q8_0(from, block);
    case GgmlType::kQ2_K:
      return pack_q2_k(from, block);
    case GgmlType::kQ3_K:
      return pack_q3_k(from, block);
    case GgmlType::kQ4_K:
      return pack_q4_k(from, block);
    default:
      throw Error("internal error: no block of weights");
  }
}

float half_at(const Byte* bytes) {
  std::uint16_t half;
  std::memcpy(&half, bytes, sizeof half);
  return half_to_float(half);
}

}  // namespace

std::optional<GgmlType> block_type_for(const LinearScheme& scheme, std::int64_t cols) {
  if (scheme.kind != LinearScheme::Kind::kUniform || scheme.sparse || scheme.reordered)
    return std::nullopt;
  const std::int64_t group = scheme.group_size_for(cols);
  const int bits = scheme.bits;
  const bool symmetric = is_symmetric(scheme.grid);
  if (cols % group != 0 || group % 32 != 0) return std::nullopt;
  if (group % 256 == 0) {
    if (bits == 2) return GgmlType::kQ2_K;
    if (symmetric && bits == 3) return GgmlType::kQ3_K;
    if (!symmetric && bits <= 4) return GgmlType::kQ4_K;
  }
  const int needed = symmetric ? bits : bits + 1;  // for code - zero, with its sign
  if (needed <= 4) return GgmlType::kQ4_0;
  if (needed <= 5) return GgmlType::kQ5_0;
  if (needed <= 8) return GgmlType::kQ8_0;
  return std::nullopt;
}

HostTensor pack_blocks(const QuantizedLinear& linear, GgmlType type) {
  const GgmlBlock block = block_of(type);
  const std::int64_t blocks = linear.cols / block.weights, groups = linear.groups();
  HostTensor packed(DType::kU8, {linear.rows, blocks * block.bytes});
  const Byte* codes = linear.codes.as<Byte>().data();
  Byte* out = packed.as<Byte>().data();
  for (std::int64_t row = 0; row < linear.rows; ++row) {
    for (std::int64_t i = 0; i < blocks; ++i) {
      const auto group =
          static_cast<std::size_t>(row * groups + i * block.weights / linear.group_size);
      pack({.codes = codes + row * linear.cols + i * block.weights,
            .scale = linear.scales.as<std::uint16_t>()[group],
            .zero = linear.zeros.as<Byte>()[group]},
           type, out + (row * blocks + i) * block.bytes);
    }
  }
  return packed;
}

float weight_in_block(const std::byte* bytes, GgmlType type, int index) {
  const auto* b = reinterpret_cast<const Byte*>(bytes);
  const int half = index / 16 % 2, at16 = index % 16;
  switch (type) {
    case GgmlType::kQ4_0:
      return half_at(b) * static_cast<float>((b[2 + at16] >> (4 * half) & 15) - 8);
    case GgmlType::kQ5_0: {
      const int low = b[6 + at16] >> (4 * half) & 15;
      const int high = b[2 + index / 8] >> (index % 8) & 1;
      return half_at(b) * static_cast<float>(low + 16 * high - 16);
    }
    case GgmlType::kQ8_0:
      return half_at(b) * static_cast<float>(static_cast<std::int8_t>(b[2 + index]));
    case GgmlType::kQ2_K: {
      const int code = b[16 + index / 128 * 32 + index % 32] >> (index / 32 % 4 * 2) & 3;
      const Byte scales = b[index / 16];
      const float scale = half_at(b + 80) * static_cast<float>(scales & 15);
      return scale * static_cast<float>(code) - half_at(b + 82) * static_cast<float>(scales >> 4);
    }
    case GgmlType::kQ3_K: {
      const int low = b[32 + index / 128 * 32 + index % 32] >> (index / 32 % 4 * 2) & 3;
      const int high = b[index % 32] >> (index / 32) & 1;
      const int s = index / 16;
      const int scale = (b[96 + s % 8] >> (s / 8 * 4) & 15) | (b[104 + s % 4] >> (s / 4 * 2) & 3)
                                                                  << 4;
      return half_at(b + 108) * static_cast<float>(scale - 32) *
             static_cast<float>(low + 4 * high - 4);
    }
    case GgmlType::kQ4_K: {
      const int s = index / 32;
      const Byte* scales = b + 4;
      const int scale = s < 4 ? scales[s] & 63 : (scales[s + 4] & 15) | scales[s - 4] >> 6 << 4;
      const int offset = s < 4 ? scales[s + 4] & 63 : scales[s + 4] >> 4 | scales[s] >> 6 << 4;
      const int code = b[16 + index / 64 * 32 + index % 32] >> (index / 32 % 2 * 4) & 15;
      return half_at(b) * static_cast<float>(scale) * static_cast<float>(code) -
             half_at(b + 2) * static_cast<float>(offset);
    }
    default:
      throw Error("internal error: no block of weights");
  }
}

}  // namespace roundhouse
