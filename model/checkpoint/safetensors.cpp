#include "model/checkpoint/safetensors.h"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "base/error.h"
#include "base/json_file.h"
#include "model/checkpoint/tensor_writer.h"

namespace roundhouse {
namespace {

using nlohmann::json;

constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // the limit of the format's own library
constexpr std::size_t kLengthBytes = 8;
constexpr std::string_view kMetadata = "__metadata__";

// Every type of the format, whether we compute with it or not: sizes must add up for all of them.
std::optional<std::uint64_t> bits_of(std::string_view type) {
  static constexpr std::array<std::pair<std::string_view, std::uint64_t>, 22> kBits{
      {{"F4", 4},          {"F6_E2M3", 6},    {"F6_E3M2", 6}, {"BOOL", 8},    {"U8", 8},
       {"I8", 8},          {"F8_E4M3", 8},    {"F8_E5M2", 8}, {"F8_E8M0", 8}, {"U16", 16},
       {"I16", 16},        {"F16", 16},       {"BF16", 16},   {"U32", 32},    {"I32", 32},
       {"F32", 32},        {"U64", 64},       {"I64", 64},    {"F64", 64},    {"C64", 64},
       {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}}};
  for (const auto& [name, bits] : kBits) {
    if (name == type) return bits;
  }
  return std::nullopt;
}

std::uint64_t load_u64(const std::byte* bytes) {
  std::uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = value << 8 | std::to_integer<std::uint64_t>(bytes[i]);
  return value;
}

struct Entry {
  std::string name;
  std::string type;
  Shape shape;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

// One tensor of the header, all but its place among the others. Throws a string-only InputError,
// which the caller prefixes.
Entry parse_entry(const std::string& name, const json& value) {
  const auto integer = [](const json& number, const char* key) {
    // A double (1.0, 1e3), a negative number and one beyond 64 bits are not "number_unsigned".
    if (!number.is_number_unsigned()) {
      throw InputError(std::string(key) + " holds something else than a non-negative integer");
    }
    return number.get<std::uint64_t>();
  };
  const auto member = [&](const char* key) -> const json& {
    const auto found = value.find(key);
    if (found == value.end()) throw InputError(std::string("no ") + key);
    return *found;
  };

  if (!value.is_object()) throw InputError("not a JSON object");
  Entry entry{.name = name, .type = {}, .shape = {}};
  const json& type = member("dtype");
  if (!type.is_string()) throw InputError("dtype is not a string");
  entry.type = type.get<std::string>();
  const auto bits = bits_of(entry.type);
  if (!bits) throw InputError("unknown dtype " + in_quotes(entry.type));

  const json& shape = member("shape");
  if (!shape.is_array()) throw InputError("shape is not a list");
  std::uint64_t total_bits = *bits;
  for (const json& size : shape) {
    const std::uint64_t n = integer(size, "shape");
    if (n > std::numeric_limits<std::int64_t>::max() ||
        __builtin_mul_overflow(total_bits, n, &total_bits)) {
      throw InputError("shape is too large");
    }
    entry.shape.push_back(static_cast<std::int64_t>(n));
  }

  const json& offsets = member("data_offsets");
  if (!offsets.is_array() || offsets.size() != 2) throw InputError("data_offsets is not a pair");
  entry.begin = integer(offsets[0], "data_offsets");
  entry.end = integer(offsets[1], "data_offsets");
  if (entry.end < entry.begin) throw InputError("data_offsets end before they begin");
  const std::uint64_t bytes = entry.end - entry.begin;
  if (total_bits % 8 != 0 || total_bits / 8 != bytes) {
    throw InputError(fmt::format("shape and dtype do not fill data_offsets ({} bytes)", bytes));
  }
  return entry;
}

void check_metadata(const json& metadata) {
  if (!metadata.is_object()) throw InputError("not a JSON object");
  for (const auto& [key, value] : metadata.items()) {
    if (!value.is_string()) throw InputError("the value of " + in_quotes(key) + " is not a string");
  }
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : TensorFile(path) {
  const auto fail = [&](const std::string& what) { throw InputError(path.string() + ": " + what); };
  const std::span<const std::byte> bytes = file_.bytes();
  if (bytes.size() < kLengthBytes) fail("not a safetensors file: shorter than 8 bytes");
  const std::uint64_t header_bytes = load_u64(bytes.data());
  if (header_bytes > kMaxHeaderBytes) {
    fail(fmt::format("not a safetensors file: a header of {} bytes", header_bytes));
  }
  if (header_bytes > bytes.size() - kLengthBytes) fail("truncated within the header");
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes,
                              header_bytes);
  const std::span<const std::byte> data = bytes.subspan(kLengthBytes + header_bytes);
  if (!text.starts_with('{')) fail("not a safetensors file: the header does not start with {");

  const json header = parse_json(text, path);
  std::vector<Entry> entries;
  for (const auto& [name, value] : header.items()) {
    try {
      if (name == kMetadata) {
        check_metadata(value);
      } else {
        entries.push_back(parse_entry(name, value));
      }
    } catch (const InputError& error) {
      fail((name == kMetadata ? "" : "tensor ") + in_quotes(name) + ": " + error.what());
    }
  }

  std::ranges::sort(entries, {},
                    [](const Entry& entry) { return std::pair(entry.begin, entry.end); });
  std::uint64_t end = 0;
  for (Entry& entry : entries) {
    if (entry.begin != end) {
      fail(
          fmt::format("tensor {}: data_offsets leave a hole or overlap (begins at {}, the tensor "
                      "before ends at {})",
                      in_quotes(entry.name), entry.begin, end));
    }
    end = entry.end;
    if (end > data.size())
      fail("tensor " + in_quotes(entry.name) + ": data beyond the end of the file");
    if (const auto type = dtype_from_name(entry.type)) {
      tensors_[entry.name] = {*type, std::move(entry.shape),
                              data.subspan(entry.begin, end - entry.begin)};
    } else {
      unsupported_[entry.name] = "the type " + entry.type + " is not supported";
    }
  }
  if (end != data.size()) {
    fail(fmt::format("{} bytes after the last tensor", data.size() - end));
  }
}

void sort_for_file(std::vector<TensorInfo>& tensors) {
  std::ranges::sort(tensors, [](const TensorInfo& a, const TensorInfo& b) {
    if (size_of(a.type) != size_of(b.type)) return size_of(a.type) > size_of(b.type);
    return a.name < b.name;
  });
}

namespace {

class Writer final : public TensorWriter {
 public:
  Writer(const std::filesystem::path& path, const std::vector<TensorInfo>& tensors,
         const std::map<std::string, std::string>& metadata);
};

Writer::Writer(const std::filesystem::path& path, const std::vector<TensorInfo>& tensors,
               const std::map<std::string, std::string>& metadata)
    : TensorWriter(path) {
  // Written by hand: the order of the tensors is the order of their data, which a JSON object of
  // the library would not keep.
  std::string header;
  std::set<std::string_view> names;
  std::vector<Entry> entries;
  std::uint64_t offset = 0;
  try {
    if (!metadata.empty()) header += ",\"" + std::string(kMetadata) + "\":" + json(metadata).dump();
    for (const TensorInfo& tensor : tensors) {
      if (tensor.name == kMetadata || !names.insert(tensor.name).second)
        fail("a tensor cannot be called " + in_quotes(tensor.name) + " here");
      const std::uint64_t bytes =
          static_cast<std::uint64_t>(element_count(tensor.shape)) * size_of(tensor.type);
      const std::uint64_t end = offset + bytes;
      header += fmt::format(",{}:{{\"dtype\":\"{}\",\"shape\":{},\"data_offsets\":[{},{}]}}",
                            json(tensor.name).dump(), name_of(tensor.type),
                            json(tensor.shape).dump(), offset, end);
      entries.push_back({tensor.name, bytes});
      offset = end;
    }
  } catch (const json::exception&) {
    fail("a name that is not UTF-8");
  }
  if (header.empty()) header = ",";
  header.front() = '{';
  header += '}';
  header.resize((header.size() + 7) / 8 * 8, ' ');  // so that the data is aligned
  if (header.size() > kMaxHeaderBytes) fail("too many tensors for one file");

  std::string length(kLengthBytes, '\0');
  for (std::size_t i = 0; i < length.size(); ++i)
    length[i] = static_cast<char>(header.size() >> (8 * i) & 0xff);
  begin(length + header, std::move(entries));
}

}  // namespace

std::unique_ptr<TensorWriter> make_safetensors_writer(
    const std::filesystem::path& path, const std::vector<TensorInfo>& tensors,
    const std::map<std::string, std::string>& metadata) {
  return std::make_unique<Writer>(path, tensors, metadata);
}

struct SafetensorsWriter::State {
  Writer writer;
};
SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path,
                                     std::vector<TensorInfo> tensors,
                                     const std::map<std::string, std::string>& metadata)
    : state_(new State{{path, tensors, metadata}}) {}
SafetensorsWriter::~SafetensorsWriter() = default;
void SafetensorsWriter::write(const std::string& name, std::span<const std::byte> bytes) {
  state_->writer.write(name, bytes);
}
void SafetensorsWriter::close() { state_->writer.close(); }

}  // namespace roundhouse
