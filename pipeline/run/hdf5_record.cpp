#include "pipeline/run/hdf5_record.h"

#include <hdf5.h>

#include <algorithm>
#include <array>
#include <limits>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/unique.h"
#include "pipeline/run/record_seal.h"

namespace roundhouse {
namespace {

constexpr const char* kAttributes = "attributes";
constexpr std::array kTypes = {DType::kF32, DType::kF16, DType::kBF16, DType::kU8,
                               DType::kI32, DType::kI64, DType::kU32};

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
    // Where a file's first object is damaged, H5Fopen() fails without forgetting the file, which the library would complain of at the
    // program's end. Nothing of ours is left open for it to close.
    static const herr_t once = H5dont_atexit();
    (void)once;
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
H5File build_image(const std::filesystem::path& name, const Record& record) {
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

}  // namespace

struct RecordImage::File {
  H5File file;
  char* begin = nullptr;
  std::size_t size = 0;
};

RecordImage::RecordImage(const std::filesystem::path& name, const Record& record)
    : file_(std::make_unique<File>()) {
  const QuietHdf5 quiet;
  H5File file = build_image(name, record);
  file_->size =
      static_cast<std::size_t>(check_hdf5(H5Fget_file_image(file.get(), nullptr, 0), "size"));
  void* memory = nullptr;
  check_hdf5(H5Fget_vfd_handle(file.get(), H5P_DEFAULT, &memory), "memory");
  file_->begin = *static_cast<char**>(memory);
  file_->file = std::move(file);
}

RecordImage::~RecordImage() {
  const QuietHdf5 quiet;
  file_.reset();
}

std::span<char> RecordImage::bytes() const { return {file_->begin, kSealBytes + file_->size}; }

Record record_in_image(std::span<std::byte> image, Content content) {
  const QuietHdf5 quiet;
  const bool with_tensors = content == Content::kAll;
  try {
    const H5File file = open_image(image);
    Record record;
    record.attributes = read_attributes(file.get(), image.size());
    Budget budget{.file_bytes = image.size(), .left = image.size()};
    for (const std::string& name : dataset_names(file.get())) {
      HostTensor tensor = read_dataset(file.get(), name, budget, with_tensors);
      if (with_tensors) record.tensors.emplace(name, std::move(tensor));
    }
    return record;
  } catch (const Error& structure) {
    throw Damage{structure.what()};
  }
}

std::optional<nlohmann::json> attributes_in_file(const std::filesystem::path& path,
                                                 std::uint64_t file_bytes) {
  const QuietHdf5 quiet;
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

}  // namespace roundhouse
