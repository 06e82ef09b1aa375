#include "model/checkpoint/pytorch_file.h"

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

#include <fmt/format.h>

#include "model/checkpoint/pickle.h"
#include "model/checkpoint/zip.h"

namespace roundhouse {
namespace {

constexpr std::size_t kMaxPickleBytes = std::size_t{1} << 22;  // that of a 70B model has 0.2 MB

struct StorageType {
  std::string_view name;
  std::int64_t bytes;  // of an element
  std::optional<DType> type;
};
constexpr std::array<StorageType, 10> kStorageTypes = {{{"FloatStorage", 4, DType::kF32},
                                                        {"HalfStorage", 2, DType::kF16},
                                                        {"BFloat16Storage", 2, DType::kBF16},
                                                        {"DoubleStorage", 8, std::nullopt},
                                                        {"LongStorage", 8, DType::kI64},
                                                        {"IntStorage", 4, DType::kI32},
                                                        {"ShortStorage", 2, std::nullopt},
                                                        {"CharStorage", 1, std::nullopt},
                                                        {"ByteStorage", 1, DType::kU8},
                                                        {"BoolStorage", 1, std::nullopt}}};

using Entries = std::map<std::string, std::span<const std::byte>>;

// "NAME/" of the only entry NAME/data.pkl.
std::string find_prefix(const Entries& entries, const std::string& file) {
  std::optional<std::string> prefix;
  for (const auto& [name, bytes] : entries) {
    const std::size_t slash = name.find('/');
    if (slash == name.npos || name.substr(slash) != "/data.pkl") continue;
    if (prefix) throw InputError(file + ": two entries data.pkl");
    prefix = name.substr(0, slash + 1);
  }
  if (!prefix)
    throw InputError(file + ": a ZIP archive without data.pkl: not a PyTorch checkpoint");
  return *prefix;
}

// Precondition: it has elements, and their number is one.
bool is_contiguous(const PickledTensor& tensor) {
  std::int64_t stride = 1;
  for (std::size_t i = tensor.shape.size(); i-- > 0;) {
    if (tensor.shape[i] != 1 && tensor.strides[i] != stride) return false;
    stride *= tensor.shape[i];
  }
  return true;
}

// The number of its elements; nothing if that is no number.
std::optional<std::int64_t> count_of(const PickledTensor& tensor) {
  if (tensor.shape.size() != tensor.strides.size()) return std::nullopt;
  std::int64_t count = 1;
  for (const std::int64_t size : tensor.shape) {
    if (size < 0 || __builtin_mul_overflow(count, size, &count)) return std::nullopt;
  }
  return count;
}

}  // namespace

PytorchFile::PytorchFile(const std::filesystem::path& path) : TensorFile(path) {
  const std::string file = path.string();
  const std::span<const std::byte> bytes = file_.bytes();
  if (bytes.size() > 2 && bytes[0] == std::byte{0x80}) {
    throw InputError(
        file +
        ": written by PyTorch before 1.6, which is not read: load it with torch.load() "
        "and save it again");
  }
  const Entries entries = read_stored_zip(bytes, file);
  const std::string prefix = find_prefix(entries, file);
  if (const auto order = entries.find(prefix + "byteorder"); order != entries.end()) {
    const std::string_view text(reinterpret_cast<const char*>(order->second.data()),
                                order->second.size());
    if (text != "little")
      throw InputError(file + ": byteorder " + in_quotes(text) + " is not little");
  }
  const std::span<const std::byte> pickle = entries.at(prefix + "data.pkl");
  if (pickle.size() > kMaxPickleBytes) throw InputError(file + ": data.pkl: too large");

  for (const PickledTensor& tensor : read_state_dict(pickle, file + ": data.pkl")) {
    const auto fail = [&](const std::string& what) {
      throw InputError(file + ": tensor " + in_quotes(tensor.name) + ": " + what);
    };
    const auto* type = std::ranges::find(kStorageTypes, tensor.storage_type, &StorageType::name);
    require(type != kStorageTypes.end(), "a pickle names only known storages");
    const auto storage = entries.find(prefix + "data/" + tensor.storage_key);
    if (storage == entries.end()) fail("no entry data/" + in_quotes(tensor.storage_key));
    const auto size = static_cast<std::int64_t>(storage->second.size());
    if (tensor.storage_elements < 0 || size % type->bytes != 0 ||
        tensor.storage_elements != size / type->bytes) {
      fail(fmt::format("its storage has {} bytes, which are not {} elements of {}", size,
                       tensor.storage_elements, type->name));
    }
    const auto count = count_of(tensor);
    if (!count) fail("its shape or its strides are none");
    if (!type->type) {
      unsupported_[tensor.name] = std::string(type->name) + " is not supported";
    } else if (*count > 0 && !is_contiguous(tensor)) {
      unsupported_[tensor.name] = "its elements are not contiguous: save a contiguous() copy";
    } else {
      if (tensor.offset < 0 || tensor.offset > tensor.storage_elements ||
          *count > tensor.storage_elements - tensor.offset) {
        fail("its elements lie outside its storage");
      }
      const auto first = static_cast<std::size_t>(tensor.offset * type->bytes);
      tensors_[tensor.name] = {
          *type->type, tensor.shape,
          storage->second.subspan(first, static_cast<std::size_t>(*count * type->bytes))};
    }
  }
}

}  // namespace roundhouse
