#include "pipeline/run/hdf5_store.h"

#include <fmt/format.h>
#include <hdf5.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <limits>
#include <mutex>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/file_name.h"
#include "base/hash.h"
#include "base/unique.h"
#include "base/write_guard.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kSealBytes = 512;  // the smallest user block that HDF5 knows
constexpr const char* kAttributes = "attributes";
constexpr std::string_view kMagic = "roundhouse-record 2";
constexpr std::string_view kEarlierMagic = "roundhouse-record 1\n";  // did not hold the key
constexpr std::string_view kNoIdentity = "none";
constexpr std::array kTypes = {DType::kF32, DType::kF16, DType::kBF16, DType::kU8,
                               DType::kI32, DType::kI64, DType::kU32};

// Of what stores keep in mind: a thread that writes behind commits while another one looks at other records.
std::mutex notes;

// What is wrong with a record; never leaves this file.
struct Damage {
  std::string why;
};

struct Seal {
  std::string key;
  std::string identity;
  std::uint64_t bytes = 0;
  std::string hash;

  std::string head() const {
    return fmt::format("{}\nkey {}\nidentity {}\nbytes {}\n", kMagic, key, identity, bytes);
  }
  std::string text() const {
    std::string block = head() + "xxh3-128 " + hash + "\n";
    require(block.size() <= kSealBytes, "the seal of a record fits into its block");
    block.resize(kSealBytes, '\0');
    return block;
  }
};

// Throws Damage unless the block is exactly what text() gives.
Seal parse_seal(const std::string& block) {
  std::string_view rest = block;
  const auto take = [&rest](std::string_view label) -> std::string {
    const std::size_t end = rest.find('\n');
    if (!rest.starts_with(label) || end == std::string_view::npos) throw Damage{"it has no seal"};
    const std::string value(rest.substr(label.size(), end - label.size()));
    rest.remove_prefix(end + 1);
    return value;
  };
  Seal seal;
  if (block.starts_with(kEarlierMagic)) throw Damage{Hdf5Store::kEarlier};
  if (block.size() != kSealBytes || !take(kMagic).empty()) throw Damage{"it has no seal"};
  seal.key = take("key ");
  seal.identity = take("identity ");
  const std::string bytes = take("bytes ");
  std::from_chars(bytes.data(), bytes.data() + bytes.size(), seal.bytes);
  seal.hash = take("xxh3-128 ");
  if (seal.text() != block) throw Damage{"its seal is damaged"};
  return seal;
}

// The seal at the front of a file of this many bytes that is to hold this record. Throws Damage.
Seal front_seal(std::span<const std::byte> front, std::uint64_t file_bytes,
                const std::string& key) {
  Seal seal = parse_seal({reinterpret_cast<const char*>(front.data()), front.size()});
  if (file_bytes - front.size() < seal.bytes) throw Damage{"it is cut short"};
  if (file_bytes - front.size() > seal.bytes) throw Damage{"it has bytes after its end"};
  if (seal.key != key) throw Damage{"it is a copy of " + seal.key};
  return seal;
}

// The seal alone, of a file that is not read further.
Seal quick_seal(const fs::path& path, const std::string& key) {
  InputFile file(path);
  std::vector<std::byte> front(std::min<std::uint64_t>(kSealBytes, file.size()));
  front.resize(file.read(front));
  return front_seal(front, file.size(), key);
}

// The seal of the file that is to hold this record; the whole file goes into `image`. Throws Damage; or what InputFile does where
// the file cannot be read, which says nothing about its content.
Seal checked_seal(const fs::path& path, const std::string& key, std::vector<std::byte>& image) {
  InputFile file(path);
  image.resize(file.size());
  image.resize(file.read(image));
  const std::span<const std::byte> bytes(image);
  const std::span<const std::byte> front = bytes.first(std::min(kSealBytes, bytes.size()));
  Seal seal = front_seal(front, bytes.size(), key);

  Xxh3 hash;
  const std::string head = seal.head();
  hash.update(std::as_bytes(std::span(head)));
  hash.update(bytes.subspan(front.size()));
  if (hash.hex() != seal.hash) throw Damage{"its content does not match its hash"};
  return seal;
}

using H5File = Unique<hid_t, &H5Fclose>;
using H5Dataset = Unique<hid_t, &H5Dclose>;
using H5Space = Unique<hid_t, &H5Sclose>;
using H5Type = Unique<hid_t, &H5Tclose>;
using H5Attribute = Unique<hid_t, &H5Aclose>;
using H5Properties = Unique<hid_t, &H5Pclose>;

// The library's own account of its last failure, and forgets it.
std::string hdf5_reason() {
  std::string reason;
  const auto keep_first = [](unsigned, const H5E_error2_t* error, void* text) -> herr_t {
    std::string& first = *static_cast<std::string*>(text);
    if (first.empty() && error->desc != nullptr) first = error->desc;
    return 0;
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_first, &reason);  // upward: the cause comes first
  H5Eclear2(H5E_DEFAULT);
  return reason.empty() ? "HDF5 failed" : "HDF5: " + reason;
}

// A handle or a status; negative: it failed.
template <class T>
T check_hdf5(T result, const char* what) {
  if (result < 0) throw Error(std::string(what) + ": " + hdf5_reason());
  return result;
}

// HDF5's IEEE types are borrowed from the library; the two 16-bit floats are made from one of them.
H5Type file_type(DType type) {
  const auto copy = [](hid_t predefined) {
    return H5Type(check_hdf5(H5Tcopy(predefined), "type"));
  };
  const auto small_float = [&copy](std::size_t exponent, std::size_t mantissa, std::size_t bias) {
    H5Type made = copy(H5T_IEEE_F32LE);
    check_hdf5(H5Tset_fields(made.get(), 15, mantissa, exponent, 0, mantissa), "type");
    check_hdf5(H5Tset_size(made.get(), 2), "type");
    check_hdf5(H5Tset_ebias(made.get(), bias), "type");
    return made;
  };
  switch (type) {
    case DType::kF32:
      return copy(H5T_IEEE_F32LE);
    case DType::kF16:
      return small_float(5, 10, 15);
    case DType::kBF16:
      return small_float(8, 7, 127);
    case DType::kU8:
      return copy(H5T_STD_U8LE);
    case DType::kI32:
      return copy(H5T_STD_I32LE);
    case DType::kI64:
      return copy(H5T_STD_I64LE);
    case DType::kU32:
      return copy(H5T_STD_U32LE);
  }
  throw Error("internal error: an unknown element type");
}

H5Properties properties(hid_t kind) {
  return H5Properties(check_hdf5(H5Pcreate(kind), "properties"));
}

// While this lives, no other thread is inside of HDF5, which knows of none, and it prints nothing.
class QuietHdf5 {
 public:
  QuietHdf5() : alone_(inside()) {
    H5Eget_auto2(H5E_DEFAULT, &print_, &data_);
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  }
  QuietHdf5(const QuietHdf5&) = delete;
  QuietHdf5& operator=(const QuietHdf5&) = delete;
  ~QuietHdf5() { H5Eset_auto2(H5E_DEFAULT, print_, data_); }

 private:
  static std::mutex& inside() {
    static std::mutex mutex;
    return mutex;
  }

  std::lock_guard<std::mutex> alone_;
  H5E_auto2_t print_ = nullptr;
  void* data_ = nullptr;
};

void write_dataset(hid_t file, const std::string& name, const HostTensor& tensor) {
  require(!name.empty() && name.size() <= 1000 && name.find('/') == std::string::npos &&
              name.find('\0') == std::string::npos && name != ".",
          "a tensor's name is a plain word");
  const std::vector<hsize_t> dims(tensor.shape().begin(), tensor.shape().end());
  const H5Space space(
      check_hdf5(H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr), "shape"));
  const H5Type type = file_type(tensor.type());
  const H5Properties creation = properties(H5P_DATASET_CREATE);
  check_hdf5(H5Pset_layout(creation.get(), H5D_CONTIGUOUS), "layout");
  check_hdf5(H5Pset_fill_time(creation.get(), H5D_FILL_TIME_NEVER), "fill time");
  check_hdf5(H5Pset_obj_track_times(creation.get(), false), "times");
  const H5Dataset dataset(check_hdf5(H5Dcreate2(file, name.c_str(), type.get(), space.get(),
                                                H5P_DEFAULT, creation.get(), H5P_DEFAULT),
                                     name.c_str()));
  if (tensor.bytes().empty()) return;
  check_hdf5(
      H5Dwrite(dataset.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, tensor.bytes().data()),
      name.c_str());
}

void write_attributes(hid_t file, const nlohmann::json& attributes) {
  const std::string text =
      attributes.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  const H5Type type(check_hdf5(H5Tcopy(H5T_C_S1), "type"));
  check_hdf5(H5Tset_size(type.get(), text.size()), "type");
  check_hdf5(H5Tset_strpad(type.get(), H5T_STR_NULLPAD), "type");
  check_hdf5(H5Tset_cset(type.get(), H5T_CSET_UTF8), "type");
  const H5Space space(check_hdf5(H5Screate(H5S_SCALAR), "shape"));
  const H5Attribute attribute(
      check_hdf5(H5Acreate2(file, kAttributes, type.get(), space.get(), H5P_DEFAULT, H5P_DEFAULT),
                 kAttributes));
  check_hdf5(H5Awrite(attribute.get(), type.get(), text.data()), kAttributes);
}

// The whole file with an empty user block, in memory: HDF5's core driver without a file behind it.
// No file may have this name, or the driver would read it first.
H5File build_image(const fs::path& name, const Record& record) {
  std::size_t bytes = 0;
  for (const auto& [key, tensor] : record.tensors) bytes += tensor.bytes().size();
  const H5Properties access = properties(H5P_FILE_ACCESS);
  // The increment is what the driver grows by: with this much it allocates once, if descriptions
  // take less than 1 MiB.
  check_hdf5(H5Pset_fapl_core(access.get(), bytes + (std::size_t{1} << 20), false), "driver");
  // From 1.8 on attributes may be longer than 64 KiB.
  check_hdf5(H5Pset_libver_bounds(access.get(), H5F_LIBVER_V18, H5F_LIBVER_V18), "version");
  const H5Properties creation = properties(H5P_FILE_CREATE);
  check_hdf5(H5Pset_userblock(creation.get(), kSealBytes), "user block");
  check_hdf5(H5Pset_obj_track_times(creation.get(), false), "times");

  H5File file(
      check_hdf5(H5Fcreate(name.c_str(), H5F_ACC_TRUNC, creation.get(), access.get()), "create"));
  for (const auto& [key, tensor] : record.tensors) write_dataset(file.get(), key, tensor);
  write_attributes(file.get(), record.attributes);
  check_hdf5(H5Fflush(file.get(), H5F_SCOPE_GLOBAL), "flush");
  return file;
}

// The same as bytes, with room for the seal at the front. HDF5 holds them until this goes, and is left to other threads meanwhile.
class Image {
 public:
  Image(const fs::path& name, const Record& record) {
    const QuietHdf5 quiet;
    H5File file = build_image(name, record);
    size_ = static_cast<std::size_t>(check_hdf5(H5Fget_file_image(file.get(), nullptr, 0), "size"));
    void* memory = nullptr;
    check_hdf5(H5Fget_vfd_handle(file.get(), H5P_DEFAULT, &memory), "memory");
    begin_ = *static_cast<char**>(memory);
    file_ = std::move(file);
  }
  Image(const Image&) = delete;
  Image& operator=(const Image&) = delete;
  ~Image() {
    const QuietHdf5 quiet;
    const H5File gone = std::move(file_);
  }

  std::span<char> bytes() const { return {begin_, kSealBytes + size_}; }

 private:
  H5File file_;
  char* begin_ = nullptr;
  std::size_t size_ = 0;
};

DType known_type(hid_t dataset) {
  const H5Type type(check_hdf5(H5Dget_type(dataset), "type"));
  for (const DType candidate : kTypes) {
    if (H5Tequal(type.get(), file_type(candidate).get()) > 0) return candidate;
  }
  throw Damage{"a tensor of an unknown type"};
}

// What a file's tensors may claim to hold: together not more than the file, or they share bytes.
struct Budget {
  std::uint64_t file_bytes;
  std::uint64_t left;
};

HostTensor read_dataset(hid_t file, const std::string& name, Budget& budget, bool with_content) {
  const H5Dataset dataset(check_hdf5(H5Dopen2(file, name.c_str(), H5P_DEFAULT), name.c_str()));
  const H5Properties creation(check_hdf5(H5Dget_create_plist(dataset.get()), name.c_str()));
  // Its bytes must stand in this very file, as they are.
  if (H5Pget_layout(creation.get()) != H5D_CONTIGUOUS ||
      H5Pget_external_count(creation.get()) != 0 || H5Pget_nfilters(creation.get()) != 0) {
    throw Damage{name + " is not stored plainly"};
  }
  const DType type = known_type(dataset.get());
  const H5Space space(check_hdf5(H5Dget_space(dataset.get()), name.c_str()));
  if (H5Sget_simple_extent_type(space.get()) == H5S_NULL) throw Damage{name + " has no shape"};
  const int rank = check_hdf5(H5Sget_simple_extent_ndims(space.get()), name.c_str());
  std::vector<hsize_t> dims(static_cast<std::size_t>(rank));
  check_hdf5(H5Sget_simple_extent_dims(space.get(), dims.data(), nullptr), name.c_str());

  const bool empty = std::ranges::find(dims, hsize_t{0}) != dims.end();
  std::uint64_t bytes = empty ? 0 : size_of(type);
  for (const hsize_t dim : dims) {
    if (dim > static_cast<hsize_t>(std::numeric_limits<std::int64_t>::max()) ||
        (!empty && dim > budget.left / bytes)) {
      throw Damage{name + " claims more than the file holds"};
    }
    bytes *= dim;
  }
  budget.left -= bytes;
  // The storage size tells whether there is any: the offset alone is wrong for a missing one behind
  // a user block.
  const haddr_t offset = H5Dget_offset(dataset.get());
  if (H5Dget_storage_size(dataset.get()) != bytes ||
      (bytes > 0 && (offset > budget.file_bytes || bytes > budget.file_bytes - offset))) {
    throw Damage{name + " claims more than the file holds"};
  }
  if (!with_content) return {};

  HostTensor tensor(type, Shape(dims.begin(), dims.end()));
  if (bytes == 0) return tensor;
  check_hdf5(H5Dread(dataset.get(), file_type(type).get(), H5S_ALL, H5S_ALL, H5P_DEFAULT,
                     tensor.bytes().data()),
             name.c_str());
  return tensor;
}

nlohmann::json read_attributes(hid_t file, std::uint64_t file_bytes) {
  const H5Attribute attribute(check_hdf5(H5Aopen(file, kAttributes, H5P_DEFAULT), kAttributes));
  const H5Type type(check_hdf5(H5Aget_type(attribute.get()), kAttributes));
  const H5Space space(check_hdf5(H5Aget_space(attribute.get()), kAttributes));
  const std::size_t size = H5Tget_size(type.get());
  if (H5Tget_class(type.get()) != H5T_STRING || H5Tis_variable_str(type.get()) != 0 ||
      H5Sget_simple_extent_type(space.get()) != H5S_SCALAR || size > file_bytes) {
    throw Damage{"its attributes are not one text"};
  }
  std::string text(size, '\0');
  check_hdf5(H5Aread(attribute.get(), type.get(), text.data()), kAttributes);
  nlohmann::json attributes = nlohmann::json::parse(text, nullptr, false);
  if (attributes.is_discarded()) throw Damage{"its attributes are not JSON"};
  return attributes;
}

std::vector<std::string> dataset_names(hid_t file) {
  std::vector<std::string> names;
  const auto visit = [](hid_t, const char* name, const H5L_info_t* link, void* list) -> herr_t {
    // A soft or an external link could lead into another file.
    if (link->type != H5L_TYPE_HARD) return -1;
    static_cast<std::vector<std::string>*>(list)->emplace_back(name);
    return 0;
  };
  if (H5Literate(file, H5_INDEX_NAME, H5_ITER_INC, nullptr, visit, &names) < 0) {
    throw Damage{"it holds something that is no tensor"};
  }
  return names;
}

// Opens a file that is in memory already. So HDF5 meets neither a disk, whose errors it would report like damage, nor a file
// system without the locks that it asks for. `image` must stay as it is until the file is closed.
H5File open_image(std::span<std::byte> image) {
  // Without these the library makes two copies.
  static const H5FD_file_image_callbacks_t kNoCopies = {
      .image_malloc = [](std::size_t, H5FD_file_image_op_t, void* data) { return data; },
      .image_memcpy = [](void* to, const void*, std::size_t, H5FD_file_image_op_t,
                         void*) { return to; },
      .image_realloc = [](void*, std::size_t, H5FD_file_image_op_t, void*) -> void* {
        return nullptr;
      },
      .image_free = [](void*, H5FD_file_image_op_t, void*) -> herr_t { return 0; },
      .udata_copy = [](void* data) { return data; },
      .udata_free = [](void*) -> herr_t { return 0; },
      .udata = nullptr};
  H5FD_file_image_callbacks_t callbacks = kNoCopies;
  callbacks.udata = image.data();
  const H5Properties access = properties(H5P_FILE_ACCESS);
  check_hdf5(H5Pset_fapl_core(access.get(), std::size_t{1} << 20, false), "driver");
  check_hdf5(H5Pset_file_image_callbacks(access.get(), &callbacks), "image");
  check_hdf5(H5Pset_file_image(access.get(), image.data(), image.size()), "image");
  // The library wants a name that no file has.
  return H5File(check_hdf5(H5Fopen("/dev/null/record", H5F_ACC_RDONLY, access.get()), "open"));
}

// Those of a record's file, of which HDF5 reads only what it needs: headers of objects have sums of their own, and attributes lie
// in them. Nothing: it could not, or there are no sums; the whole file tells.
std::optional<nlohmann::json> attributes_in_file(const fs::path& path, std::uint64_t file_bytes) {
  try {
    const H5Properties access = properties(H5P_FILE_ACCESS);
    check_hdf5(H5Pset_fapl_sec2(access.get()), "driver");
    check_hdf5(H5Pset_file_locking(access.get(), false, true), "locks");
    const H5File file(check_hdf5(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get()), "open"));
    // Those of more than 64 KiB lie outside the header of the root group, in a heap without sums.
    H5O_info_t facts{};
    check_hdf5(H5Oget_info2(file.get(), &facts, H5O_INFO_META_SIZE), "facts");
    if (facts.meta_size.attr.index_size != 0 || facts.meta_size.attr.heap_size != 0) {
      return std::nullopt;
    }
    return read_attributes(file.get(), file_bytes);
  } catch (const Damage&) {
  } catch (const Error&) {
  }
  return std::nullopt;
}

Record read_record(std::span<std::byte> image, bool with_tensors) {
  const H5File file = open_image(image);
  Record record;
  record.attributes = read_attributes(file.get(), image.size());
  Budget budget{.file_bytes = image.size(), .left = image.size()};
  for (const std::string& name : dataset_names(file.get())) {
    HostTensor tensor = read_dataset(file.get(), name, budget, with_tensors);
    if (with_tensors) record.tensors.emplace(name, std::move(tensor));
  }
  return record;
}

bool is_plain_key(const std::string& key) {
  constexpr std::size_t kLongest = 200;  // of a part
  for (std::size_t begin = 0; begin <= key.size();) {
    const std::size_t end = std::min(key.find('/', begin), key.size());
    if (!is_file_name(std::string_view(key).substr(begin, end - begin), kLongest)) return false;
    begin = end + 1;
  }
  return true;
}

}  // namespace

Hdf5Store::Hdf5Store(fs::path root) : root_(std::move(root)) {
  // Where a file's first object is damaged, H5Fopen() fails without forgetting the file, which the library would complain of at the
  // program's end. Nothing of ours is left open for it to close.
  static const herr_t once = H5dont_atexit();
  (void)once;
  std::error_code error;
  fs::create_directories(root_, error);
  if (error) throw Error("cannot make " + root_.string() + ": " + error.message());
}

void Hdf5Store::set_identity(const std::string& prefix, const std::string& identity) {
  require(identity.size() <= 64 && !identity.empty() &&
              identity.find_first_not_of("0123456789abcdef") == std::string::npos,
          "an identity is a hexadecimal hash");
  identities_[prefix.ends_with('/') ? prefix.substr(0, prefix.size() - 1) : prefix] = identity;
}

std::string Hdf5Store::identity_of(const std::string& key) const {
  const std::string* longest = nullptr;
  for (const auto& [prefix, identity] :
       identities_) {  // in order, so that a longer one comes later
    if (prefix.empty() || key == prefix || key.starts_with(prefix + "/")) longest = &identity;
  }
  return longest != nullptr ? *longest : "";
}

fs::path Hdf5Store::path_of(const std::string& key) const {
  if (!is_plain_key(key)) throw Error("internal error: \"" + key + "\" is no key of a record");
  return root_ / (key + ".h5");
}

void Hdf5Store::commit(const std::string& key, const Record& record) {
  const fs::path path = path_of(key);
  try {
    const Image image(path.native() + ".image", record);
    const std::span<char> bytes = image.bytes();
    const std::span<char> content = bytes.subspan(kSealBytes);

    Seal seal{.key = key, .identity = identity_of(key), .bytes = content.size(), .hash = ""};
    if (seal.identity.empty()) seal.identity = kNoIdentity;
    Xxh3 hash;
    const std::string head = seal.head();
    hash.update(std::as_bytes(std::span(head)));
    hash.update(std::as_bytes(content));
    seal.hash = hash.hex();
    std::ranges::copy(seal.text(), bytes.begin());
    write_text_atomically(path, {bytes.data(), bytes.size()}, writer_);
  } catch (const InUseError&) {
    throw;  // nothing is wrong with the file
  } catch (const Error& error) {
    const std::string what = error.what();
    throw Error(what.starts_with("cannot write") ? what
                                                 : "cannot write " + path.string() + ": " + what);
  }
  const std::lock_guard lock(notes);
  reported_.erase(key);
  expected_.erase(key);
  whole_.insert(key);
}

std::optional<nlohmann::json> Hdf5Store::read_attributes_only(const std::string& key,
                                                              std::string& why) {
  const fs::path path = path_of(key);
  if (!bytes_of_file(path)) return std::nullopt;
  try {
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    if (!error && !fs::is_regular_file(status)) throw Damage{"it is not a file"};
    const Seal seal = quick_seal(path, key);
    const std::string wanted = identity_of(key);
    if (!wanted.empty() && seal.identity != wanted) throw Damage{kForeign};
    const QuietHdf5 quiet;
    if (auto attributes = attributes_in_file(path, seal.bytes)) return attributes;
  } catch (const Damage& damage) {
    why = damage.why;
    return std::nullopt;
  }
  std::optional<Record> record = read(key, Content::kAttributes, why);
  if (!record) return std::nullopt;
  return std::move(record->attributes);
}

std::optional<Record> Hdf5Store::read(const std::string& key, Content content, std::string& why) {
  const fs::path path = path_of(key);
  const auto expected = [&] {
    const std::lock_guard lock(notes);
    return expected_.extract(key);
  }();
  if (expected) {
    wait_until_visible(path, expected.mapped());
  } else if (!bytes_of_file(path)) {
    return std::nullopt;
  }
  std::error_code error;
  const fs::file_status status = fs::status(path, error);

  try {
    if (!error && !fs::is_regular_file(status)) throw Damage{"it is not a file"};
    std::vector<std::byte> image;
    const Seal seal = checked_seal(path, key, image);
    const std::string wanted = identity_of(key);
    if (!wanted.empty() && seal.identity != wanted) throw Damage{kForeign};
    const QuietHdf5 quiet;
    try {
      Record record = read_record(image, content == Content::kAll);
      const std::lock_guard lock(notes);
      whole_.insert(key);
      return record;
    } catch (const Error& structure) {
      throw Damage{structure.what()};
    }
  } catch (const Damage& damage) {
    why = damage.why;
    return std::nullopt;
  }
}

void Hdf5Store::report(const std::string& key, const std::string& why) {
  if (why.empty()) return;
  const bool first = [&] {
    const std::lock_guard lock(notes);
    whole_.erase(key);
    return reported_.insert(key).second;
  }();
  if (first && on_damage) on_damage(key, why);
}

std::optional<Record> Hdf5Store::read_or_report(const std::string& key, Content content) {
  std::string why;
  std::optional<Record> record = read(key, content, why);
  report(key, why);
  return record;
}

std::optional<Record> Hdf5Store::load(const std::string& key) {
  return read_or_report(key, Content::kAll);
}

std::optional<nlohmann::json> Hdf5Store::attributes(const std::string& key) {
  std::string why;
  std::optional<nlohmann::json> attributes = read_attributes_only(key, why);
  report(key, why);
  return attributes;
}

bool Hdf5Store::whole(const std::string& key) {
  return read_or_report(key, Content::kAttributes).has_value();
}

std::string Hdf5Store::check(const std::string& key) {
  std::string why;
  if (read(key, Content::kAttributes, why)) return "";
  return why.empty() ? "missing" : why;
}

std::vector<std::string> Hdf5Store::keys(const std::string& folder) {
  std::vector<std::string> keys;
  visit_below(root_ / folder, [&](const fs::directory_entry& entry) {
    const fs::path path = entry.path().lexically_relative(root_);
    std::string key = fs::path(path).replace_extension().generic_string();
    if (path.extension() == ".h5" && is_plain_key(key)) keys.push_back(std::move(key));
    return true;
  });
  std::ranges::sort(keys);
  return keys;
}

std::uint64_t Hdf5Store::bytes(const std::string& key) {
  return bytes_of_file(path_of(key)).value_or(0);
}

void Hdf5Store::doubt(const std::string& key) {
  const std::lock_guard lock(notes);
  whole_.erase(key);
  expected_.erase(key);
}

void Hdf5Store::expect(const std::string& key, std::uint64_t bytes) {
  const std::lock_guard lock(notes);
  expected_[key] = bytes;
}

void Hdf5Store::remove(const std::string& key) {
  const fs::path path = path_of(key);
  pass_write_guard();
  std::error_code error;
  fs::remove(path, error);
  {
    const std::lock_guard lock(notes);
    expected_.erase(key);
    reported_.erase(key);
    whole_.erase(key);
  }
  if (error) throw Error("cannot remove " + path.string() + ": " + error.message());
  remove_empty_folders(path.parent_path());
}

void Hdf5Store::remove_empty_folders(fs::path folder) {
  for (; folder != root_; folder = folder.parent_path()) {
    if (::rmdir(folder.c_str()) != 0) break;  // it is not empty, mostly
  }
}

void Hdf5Store::remove_unfinished(const std::vector<std::string>& folders) {
  std::vector<fs::path> unfinished, emptied;
  visit_below(root_, [&](const fs::directory_entry& entry) {
    const std::string name = entry.path().filename().string();
    if (name.find(".h5.") != name.npos && name.ends_with(".tmp"))
      unfinished.push_back(entry.path());
    return true;
  });
  std::error_code error;
  for (const fs::path& path : unfinished) {
    if (!fs::remove(path, error) && error)
      throw Error("cannot remove " + path.string() + ": " + error.message());
    emptied.push_back(path.parent_path());
  }
  // Also where a writer was killed before its file was there.
  for (const std::string& folder : folders) {
    emptied.push_back(root_ / folder);
    visit_below(root_ / folder, [&](const fs::directory_entry& entry) {
      if (entry.is_directory() && !entry.is_symlink()) emptied.push_back(entry.path());
      return true;
    });
  }
  for (const fs::path& folder : emptied) remove_empty_folders(folder);
}

}  // namespace roundhouse
