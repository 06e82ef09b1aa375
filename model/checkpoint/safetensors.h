// The safetensors format: reading (mapped, hostile until validated) and writing.
//
//   bytes 0..7        u64 little-endian: N, the length of the header
//   bytes 8..8+N-1    JSON: {"name": {"dtype": "F16", "shape": [..], "data_offsets": [begin, end]}, .., "__metadata__": {..}}
//   the rest          tensor data; offsets are relative to its start, contiguous, without holes or overlaps
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/tensor.h"
#include "model/checkpoint/tensor_file.h"

namespace roundhouse {

class SafetensorsFile : public TensorFile {
 public:
  // Maps and validates the whole header. Throws InputError naming the file and, where it applies, the tensor.
  explicit SafetensorsFile(const std::filesystem::path& path);
};

struct TensorInfo {
  std::string name;
  DType type;
  Shape shape;
};

// The order in which the format's own library writes: larger element types first, so that every tensor is aligned to its
// type (some readers insist), then by name.
void sort_for_file(std::vector<TensorInfo>& tensors);

// Writes one file front to back: all tensors are announced first, then their bytes are given in the same order, in as many
// pieces as one likes. Not atomic by itself: use it inside write_atomically().
class SafetensorsWriter {
 public:
  SafetensorsWriter(const std::filesystem::path& path, std::vector<TensorInfo> tensors,
                    const std::map<std::string, std::string>& metadata);
  ~SafetensorsWriter();
  void write(const std::string& name,
             std::span<const std::byte> bytes);  // name: which tensor this continues
  void close();  // throws Error if a tensor is incomplete or the disk is full

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace roundhouse
