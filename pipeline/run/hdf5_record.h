// A record as an HDF5 file in memory: hdf5_store.h says how it lies there. Any thread; one at a time is inside of HDF5.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>

#include <nlohmann/json.hpp>

#include "stages/store/run_store.h"

namespace roundhouse {

// The file's bytes, with room for the seal at the front. HDF5 holds them until this goes, and is left to other threads meanwhile.
class RecordImage {
 public:
  // No file may have this name: HDF5 would read it first. Throws Error.
  RecordImage(const std::filesystem::path& name, const Record& record);
  RecordImage(const RecordImage&) = delete;
  RecordImage& operator=(const RecordImage&) = delete;
  ~RecordImage();

  std::span<char> bytes() const;

 private:
  struct File;
  std::unique_ptr<File> file_;
};

// What a whole file holds, which is from outside: nothing in it is believed. Throws Damage (record_seal.h). `image` is not changed.
enum class Content { kAll, kAttributes };
Record record_in_image(std::span<std::byte> image, Content content);

// The attributes of a record's file, of which HDF5 reads only what it needs: headers of objects have sums of their own, and attributes
// lie in them. Nothing: it could not, or there are no sums; the whole file tells.
std::optional<nlohmann::json> attributes_in_file(const std::filesystem::path& path,
                                                 std::uint64_t file_bytes);

}  // namespace roundhouse
