// The weights of a Hugging Face model directory: model.safetensors, or model.safetensors.index.json and its shards.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "model/safetensors.h"

namespace roundhouse {

class Checkpoint {
 public:
  // Validates every header; maps files, reads no tensor. Throws InputError.
  explicit Checkpoint(const std::filesystem::path& directory);

  const std::filesystem::path& directory() const { return directory_; }
  std::vector<std::string> names() const;
  bool has(const std::string& name) const;
  HostView view(
      const std::string& name) const;  // throws InputError naming the directory and the tensor
  // The same, and InputError if the shape differs or the type is not F32, F16 or BF16.
  HostView weight(const std::string& name, const Shape& shape) const;

 private:
  std::filesystem::path directory_;
  std::map<std::string, std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, const SafetensorsFile*> file_of_;
};

}  // namespace roundhouse
