// The GGUF format (version 3) of llama.cpp: reading (mapped, hostile until validated) and writing. Little-endian throughout:
//
//   "GGUF"  u32 version  u64 tensors  u64 keys
//   keys    a name, u32 type, a value; strings are a u64 length and bytes, arrays a u32 type, a u64 count and values
//   tensors a name, u32 dimensions, u64 sizes (the row's length first), u32 type, u64 offset
//   data    from the next multiple of 32 bytes on; each tensor begins at one, which its offset is counted from
//
// Quantized tensors are rows of blocks of 32 or 256 weights. Here such a tensor is U8 [rows, bytes of a row].
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "model/checkpoint/tensor_file.h"
#include "model/checkpoint/tensor_writer.h"

namespace roundhouse {

enum class GgmlType : std::uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ5_0 = 6,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kBF16 = 30
};

// A block of a type: so many weights in so many bytes. Of a float: one.
struct GgmlBlock {
  std::int64_t weights = 1;
  std::int64_t bytes = 4;
};
GgmlBlock block_of(GgmlType type);

struct GgufTensor {
  std::string name;
  GgmlType type = GgmlType::kF32;
  Shape shape;  // of the weights, as everywhere here: [rows, cols]
};

// The keys of a file in their order, as they lie there.
class GgufKeys {
 public:
  void add(std::string_view name, std::string_view text);
  void add(std::string_view name, bool value);
  void add(std::string_view name, float value);
  void add(std::string_view name, std::uint32_t value);
  void add(std::string_view name, std::uint16_t value);
  void add(std::string_view name, std::int32_t value);
  void add(std::string_view name, const std::vector<std::string>& texts);
  void add(std::string_view name, const std::vector<float>& values);
  void add(std::string_view name, const std::vector<std::int32_t>& values);

  std::uint64_t count() const { return count_; }
  const std::string& bytes() const { return bytes_; }

 private:
  void begin(std::string_view name, std::uint32_t type);
  void begin_list(std::string_view name, std::uint32_t type, std::size_t values);

  std::uint64_t count_ = 0;
  std::string bytes_;
};

// Everything before the data. Throws Error: a name that is too long for readers or stands twice.
std::string gguf_header(const GgufKeys& keys, const std::vector<GgufTensor>& tensors);

class GgufWriter final : public TensorWriter {
 public:
  GgufWriter(const std::filesystem::path& path, const GgufKeys& keys,
             const std::vector<GgufTensor>& tensors);
};

class GgufFile : public TensorFile {
 public:
  // Maps and validates all but the data. Throws InputError naming the file and, where it applies, key or tensor.
  explicit GgufFile(const std::filesystem::path& path);
  // Everything before the data.
  std::string_view header() const { return header_; }

 private:
  std::string_view header_;
};

}  // namespace roundhouse
