// One file of tensors, mapped; its tensors are read when they are looked at.
#pragma once

#include <algorithm>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/json_file.h"
#include "base/tensor.h"

namespace roundhouse {

class TensorFile {
 public:
  virtual ~TensorFile() = default;

  const std::filesystem::path& path() const { return path_; }
  const FileFacts& facts() const { return file_.facts(); }
  // Of all tensors, those that cannot be viewed too; sorted.
  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& [name, view] : tensors_) names.push_back(name);
    for (const auto& [name, why] : unsupported_) names.push_back(name);
    std::ranges::sort(names);
    return names;
  }
  bool has(const std::string& name) const {
    return tensors_.contains(name) || unsupported_.contains(name);
  }
  // A view into the mapping, which lives as long as this object. Throws InputError if there is none of that name, or
  // saying why it cannot be viewed.
  HostView view(const std::string& name) const {
    if (const auto found = tensors_.find(name); found != tensors_.end()) return found->second;
    const auto found = unsupported_.find(name);
    if (found == unsupported_.end()) {
      throw InputError(path_.string() + ": no tensor " + in_quotes(name));
    }
    throw InputError(path_.string() + ": tensor " + in_quotes(name) + ": " + found->second);
  }
  // What was read of it no longer counts as this process's memory; it can be looked at again.
  void release_pages() const { release_mapped_pages(file_.bytes()); }

 protected:
  explicit TensorFile(std::filesystem::path path) : path_(std::move(path)), file_(path_) {}

  std::filesystem::path path_;
  MappedFile file_;
  std::map<std::string, HostView> tensors_;
  std::map<std::string, std::string> unsupported_;  // name -> why it cannot be viewed
};

}  // namespace roundhouse
