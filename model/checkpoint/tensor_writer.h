// Writes a file of tensors front to back, whatever its format: a header first, then the tensors' bytes in the order in which they
// were announced, in as many pieces as one likes. Not atomic by itself: use it inside write_atomically().
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace roundhouse {

class TensorWriter {
 public:
  virtual ~TensorWriter();
  TensorWriter(const TensorWriter&) = delete;
  TensorWriter& operator=(const TensorWriter&) = delete;

  // name: which tensor this continues. Throws Error if it is not that one's turn, or it gets too long.
  void write(const std::string& name, std::span<const std::byte> bytes);
  void close();  // throws Error if a tensor is incomplete or the disk is full

 protected:
  struct Entry {
    std::string name;
    std::uint64_t bytes;
  };
  explicit TensorWriter(std::filesystem::path path) : path_(std::move(path)) {}
  // Opens the file. Zeros follow each tensor up to a multiple of `alignment` bytes. Throws Error if it cannot be opened.
  void begin(std::string_view header, std::vector<Entry> tensors, std::uint64_t alignment = 1);
  [[noreturn]] void fail(const std::string& what) const;  // Error that begins with the path

 private:
  void put(const void* data, std::size_t bytes);
  void next();

  std::filesystem::path path_;
  std::vector<Entry> tensors_;
  std::uint64_t alignment_ = 1;
  std::FILE* file_ = nullptr;
  std::size_t current_ = 0;    // index of the tensor that is being written
  std::uint64_t missing_ = 0;  // bytes of it still to come
};

struct TensorInfo;  // safetensors.h
// As SafetensorsWriter, for those that write several formats.
std::unique_ptr<TensorWriter> make_safetensors_writer(
    const std::filesystem::path& path, const std::vector<TensorInfo>& tensors,
    const std::map<std::string, std::string>& metadata);

}  // namespace roundhouse
