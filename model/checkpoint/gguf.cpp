#include "model/checkpoint/gguf.h"

#include <array>
#include <cstring>
#include <set>
#include <type_traits>

#include <fmt/format.h>

#include "base/error.h"
#include "base/quote.h"

namespace roundhouse {
namespace {

constexpr std::string_view kMagic = "GGUF";
constexpr std::uint32_t kVersion = 3;
constexpr std::uint64_t kAlignment = 32;  // the format's default
constexpr std::size_t kMaxName = 63;      // of a tensor, in llama.cpp
constexpr std::uint64_t kMaxDimensions = 4;

// Types of keys' values.
constexpr std::uint32_t kU16 = 2, kU32 = 4, kI32 = 5, kF32 = 6, kBool = 7, kText = 8, kList = 9;

struct Type {
  GgmlType type;
  GgmlBlock block;
};
constexpr std::array kTypes = {
    Type{GgmlType::kF32, {1, 4}},      Type{GgmlType::kF16, {1, 2}},
    Type{GgmlType::kBF16, {1, 2}},     Type{GgmlType::kQ4_0, {32, 18}},
    Type{GgmlType::kQ5_0, {32, 22}},   Type{GgmlType::kQ8_0, {32, 34}},
    Type{GgmlType::kQ2_K, {256, 84}},  Type{GgmlType::kQ3_K, {256, 110}},
    Type{GgmlType::kQ4_K, {256, 144}},
};

template <class T>
void put(std::string& bytes, T value) {
  char raw[sizeof(T)];
  std::memcpy(raw, &value, sizeof(T));  // hosts are little-endian, as the format
  bytes.append(raw, sizeof(T));
}

void put_text(std::string& bytes, std::string_view text) {
  put<std::uint64_t>(bytes, text.size());
  bytes.append(text);
}

std::uint64_t padded(std::uint64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

std::uint64_t bytes_of(const GgufTensor& tensor) {
  const GgmlBlock block = block_of(tensor.type);
  require(!tensor.shape.empty() && tensor.shape.back() % block.weights == 0,
          "rows of a GGUF tensor are whole blocks");
  return static_cast<std::uint64_t>(element_count(tensor.shape) / block.weights * block.bytes);
}

// Takes values off a header, none beyond its end.
class Cursor {
 public:
  Cursor(std::string_view bytes, const std::filesystem::path& path) : rest_(bytes), path_(path) {}
  std::size_t left() const { return rest_.size(); }
  std::string_view take(std::uint64_t bytes) {
    if (bytes > rest_.size()) throw InputError(path_.string() + ": the header is cut off");
    const std::string_view taken = rest_.substr(0, bytes);
    rest_.remove_prefix(bytes);
    return taken;
  }
  template <class T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
    return value;
  }
  std::string_view text() { return take(number<std::uint64_t>()); }
  // A key's value is of no use here, but what follows it is.
  void skip(std::uint32_t type, const std::string& key, bool within = false) {
    constexpr std::array<std::uint64_t, 13> kBytes = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    if (type == kText) {
      text();
    } else if (type == kList && !within) {
      const auto each = number<std::uint32_t>();
      const auto count = number<std::uint64_t>();
      if (each < kBytes.size() && kBytes[each] != 0) {
        if (count > rest_.size()) throw InputError(path_.string() + ": the header is cut off");
        take(count * kBytes[each]);
      } else {
        for (std::uint64_t i = 0; i < count; ++i) skip(each, key, true);
      }
    } else if (type < kBytes.size() && kBytes[type] != 0) {
      take(kBytes[type]);
    } else {
      throw InputError(fmt::format("{}: key {}: values of type {} are not supported",
                                   path_.string(), in_quotes(key), type));
    }
  }

 private:
  std::string_view rest_;
  const std::filesystem::path& path_;
};

DType dtype_of(GgmlType type) {
  switch (type) {
    case GgmlType::kF32:
      return DType::kF32;
    case GgmlType::kF16:
      return DType::kF16;
    case GgmlType::kBF16:
      return DType::kBF16;
    default:
      return DType::kU8;
  }
}

}  // namespace

GgmlBlock block_of(GgmlType type) {
  for (const Type& known : kTypes) {
    if (known.type == type) return known.block;
  }
  throw Error(fmt::format("no such type of GGUF: {}", static_cast<std::uint32_t>(type)));
}

void GgufKeys::begin(std::string_view name, std::uint32_t type) {
  put_text(bytes_, name);
  put(bytes_, type);
  ++count_;
}
void GgufKeys::begin_list(std::string_view name, std::uint32_t type, std::size_t values) {
  begin(name, kList);
  put(bytes_, type);
  put<std::uint64_t>(bytes_, values);
}
void GgufKeys::add(std::string_view name, std::string_view text) {
  begin(name, kText);
  put_text(bytes_, text);
}
void GgufKeys::add(std::string_view name, bool value) {
  begin(name, kBool);
  put<std::uint8_t>(bytes_, value ? 1 : 0);
}
void GgufKeys::add(std::string_view name, float value) {
  begin(name, kF32);
  put(bytes_, value);
}
void GgufKeys::add(std::string_view name, std::uint32_t value) {
  begin(name, kU32);
  put(bytes_, value);
}
void GgufKeys::add(std::string_view name, std::uint16_t value) {
  begin(name, kU16);
  put(bytes_, value);
}
void GgufKeys::add(std::string_view name, std::int32_t value) {
  begin(name, kI32);
  put(bytes_, value);
}
void GgufKeys::add(std::string_view name, const std::vector<std::string>& texts) {
  begin_list(name, kText, texts.size());
  for (const std::string& text : texts) put_text(bytes_, text);
}
void GgufKeys::add(std::string_view name, const std::vector<float>& values) {
  begin_list(name, kF32, values.size());
  for (const float value : values) put(bytes_, value);
}
void GgufKeys::add(std::string_view name, const std::vector<std::int32_t>& values) {
  begin_list(name, kI32, values.size());
  for (const std::int32_t value : values) put(bytes_, value);
}

std::string gguf_header(const GgufKeys& keys, const std::vector<GgufTensor>& tensors) {
  std::string header(kMagic);
  put(header, kVersion);
  put<std::uint64_t>(header, tensors.size());
  put(header, keys.count());
  header += keys.bytes();
  std::set<std::string_view> names;
  std::uint64_t offset = 0;
  for (const GgufTensor& tensor : tensors) {
    if (tensor.name.size() > kMaxName || !names.insert(tensor.name).second)
      throw Error("a tensor of GGUF cannot be called " + in_quotes(tensor.name) + " here");
    put_text(header, tensor.name);
    put(header, static_cast<std::uint32_t>(tensor.shape.size()));
    for (auto size = tensor.shape.rbegin(); size != tensor.shape.rend(); ++size)
      put(header, static_cast<std::uint64_t>(*size));
    put(header, static_cast<std::uint32_t>(tensor.type));
    put(header, offset);
    offset += padded(bytes_of(tensor));
  }
  header.resize(padded(header.size()), '\0');
  return header;
}

GgufWriter::GgufWriter(const std::filesystem::path& path, const GgufKeys& keys,
                       const std::vector<GgufTensor>& tensors)
    : TensorWriter(path) {
  std::vector<Entry> entries;
  for (const GgufTensor& tensor : tensors) entries.push_back({tensor.name, bytes_of(tensor)});
  begin(gguf_header(keys, tensors), std::move(entries), kAlignment);
}

GgufFile::GgufFile(const std::filesystem::path& path) : TensorFile(path) {
  const std::span<const std::byte> all = file_.bytes();
  const std::string_view bytes(reinterpret_cast<const char*>(all.data()), all.size());
  const auto fail = [&](const std::string& what) { throw InputError(path.string() + ": " + what); };
  if (!bytes.starts_with(kMagic)) fail("not a GGUF file");
  Cursor cursor(bytes.substr(kMagic.size()), path);
  if (const auto version = cursor.number<std::uint32_t>(); version != kVersion)
    fail(fmt::format("version {} of GGUF, not {}", version, kVersion));
  const auto tensors = cursor.number<std::uint64_t>();
  const auto keys = cursor.number<std::uint64_t>();
  std::uint64_t alignment = kAlignment;
  for (std::uint64_t i = 0; i < keys; ++i) {
    const std::string key(cursor.text());
    const auto type = cursor.number<std::uint32_t>();
    if (key == "general.alignment" && type == kU32) {
      alignment = cursor.number<std::uint32_t>();
      if (alignment == 0 || alignment % 8 != 0) fail("general.alignment: not a multiple of 8");
    } else {
      cursor.skip(type, key);
    }
  }
  struct Found {
    std::string name;
    std::uint32_t type;
    Shape shape;
    std::uint64_t offset;
  };
  std::vector<Found> found;
  for (std::uint64_t i = 0; i < tensors; ++i) {
    Found tensor;
    tensor.name = cursor.text();
    const std::string what = "tensor " + in_quotes(tensor.name) + ": ";
    const auto dimensions = cursor.number<std::uint32_t>();
    if (dimensions == 0 || dimensions > kMaxDimensions)
      fail(fmt::format("{}{} dimensions", what, dimensions));
    for (std::uint32_t d = 0; d < dimensions; ++d) {
      const auto size = cursor.number<std::uint64_t>();
      if (size > bytes.size() * 256) fail(what + "larger than the file");
      tensor.shape.insert(tensor.shape.begin(), static_cast<std::int64_t>(size));
    }
    tensor.type = cursor.number<std::uint32_t>();
    tensor.offset = cursor.number<std::uint64_t>();
    found.push_back(std::move(tensor));
  }
  const std::uint64_t read = bytes.size() - cursor.left();
  const std::uint64_t start = (read + alignment - 1) / alignment * alignment;
  if (start > bytes.size() && !found.empty()) fail("the header is cut off");
  header_ = bytes.substr(0, std::min<std::uint64_t>(start, bytes.size()));
  for (Found& tensor : found) {
    const std::string what = "tensor " + in_quotes(tensor.name) + ": ";
    if (has(tensor.name)) fail(what + "stands there twice");
    const auto type = static_cast<GgmlType>(tensor.type);
    const auto known = std::ranges::find(kTypes, type, &Type::type);
    if (known == kTypes.end()) {
      unsupported_[tensor.name] = fmt::format("the type {} is not supported", tensor.type);
      continue;
    }
    std::int64_t weights = 0;
    try {
      weights = element_count(tensor.shape);
    } catch (const Error&) {
      fail(what + "larger than the file");
    }
    if (tensor.shape.back() % known->block.weights != 0)
      fail(what + "a row is not made of whole blocks");
    const auto blocks = static_cast<std::uint64_t>(weights / known->block.weights);
    if (blocks > bytes.size()) fail(what + "larger than the file");  // and its size fits 64 bits
    const std::uint64_t size = blocks * static_cast<std::uint64_t>(known->block.bytes);
    if (tensor.offset % alignment != 0) fail(what + "its data is not aligned");
    if (tensor.offset > bytes.size() - start || size > bytes.size() - start - tensor.offset)
      fail(what + "data beyond the end of the file");
    if (known->block.weights > 1)
      tensor.shape.back() = tensor.shape.back() / known->block.weights * known->block.bytes;
    tensors_[tensor.name] = {dtype_of(type), std::move(tensor.shape),
                             all.subspan(start + tensor.offset, size)};
  }
}

}  // namespace roundhouse
