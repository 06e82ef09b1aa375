// The weights of a Hugging Face model directory: model.safetensors, or model.safetensors.index.json and its shards; else
// pytorch_model.bin, or pytorch_model.bin.index.json and its shards.
//
// Tensors have the names that transformers gives them. The first files of OPT call theirs "decoder..." where those since say
// "model.decoder...": here they are the same.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "model/checkpoint/tensor_contents.h"
#include "model/checkpoint/tensor_file.h"

namespace roundhouse {

class Checkpoint {
 public:
  // Validates every header; maps files, reads no tensor. Throws InputError.
  explicit Checkpoint(const std::filesystem::path& directory);

  const std::filesystem::path& directory() const { return directory_; }
  std::vector<std::string> names() const;
  bool has(const std::string& name) const;
  // Throws InputError naming the file or index that should have it, the tensor, and those with similar names.
  HostView view(const std::string& name) const;
  // The same, and InputError if the shape differs or the type is not F32, F16 or BF16.
  HostView weight(const std::string& name, const Shape& shape) const;
  // For messages: FILE: tensor "NAME". Precondition: it is there.
  std::string where(const std::string& name) const;

  // Hashes a tensor that is about to be used, and keeps the hash. Throws InputError naming file and tensor if it held
  // something else when it was read before, in this job or, as contents() was told, in an earlier one.
  void note_content(const std::string& name) const;
  // The same where its content_hash() is known already.
  void note_content(const std::string& name, const std::string& hash) const;
  TensorContents& contents() const { return *contents_; }
  // Those that tensors are read from, by their names in the directory, sorted.
  std::vector<const TensorFile*> files() const;

 private:
  struct Place {
    const TensorFile* file;
    std::string name;  // in the file
  };
  void read_index(const std::filesystem::path& index_path);
  const TensorFile& open(const std::string& name);
  void add(const std::string& name, const TensorFile& file);

  std::filesystem::path directory_;
  std::filesystem::path list_;  // what names the tensors: the one file, or the index
  std::map<std::string, std::unique_ptr<TensorFile>> files_;
  std::map<std::string, Place> places_;
  std::unique_ptr<TensorContents> contents_ = std::make_unique<TensorContents>();
};

}  // namespace roundhouse
