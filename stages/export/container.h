// The files that a model leaves in: how tensors are called and lie there, and what describes them. Formats (format.h) say what a
// quantized linear becomes, containers where that is put.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "model/causal_lm.h"
#include "model/checkpoint/tensor_file.h"
#include "model/checkpoint/tensor_writer.h"
#include "stages/export/format.h"

namespace roundhouse {

struct ExportedFile {
  std::string name;
  std::vector<TensorInfo> tensors;  // in their order
};

// What a container is made for. All outlive it.
struct ExportedModel {
  const CausalLM& model;
  const Recipe& recipe;
  const ExportFormat& format;
  const std::vector<ExportedLinear>& linears;  // in the model's order
  bool untied = false;  // the embedding and the head, which were one tensor, are two
};

class Container {
 public:
  virtual ~Container() = default;
  virtual std::string ending() const = 0;  // of a file of weights: ".safetensors"

  // A tensor of a linear, or one that is not quantized, under the name and in the type that it has in the file. Throws InputError if
  // there is none for it.
  virtual TensorInfo of_linear(const ExportedLinear& linear, TensorInfo part) const = 0;
  virtual TensorInfo kept(TensorInfo tensor) const = 0;
  // Tensors of its own, under their names in the file, which no tensor of the model becomes.
  struct Own {
    std::string name;
    HostTensor values;
  };
  virtual std::vector<Own> own_tensors() const { return {}; }
  // Row i of a linear's tensors in the file is row order[i] of the model's; empty: the same.
  virtual std::vector<std::int64_t> row_order(const ExportedLinear&) const { return {}; }

  // File `index` of `files`, to be written or read. They throw Error or InputError naming it.
  virtual std::unique_ptr<TensorWriter> create(const std::filesystem::path& path,
                                               const std::vector<ExportedFile>& files,
                                               std::size_t index) const = 0;
  // Also throws if what it says beside the tensors is not what create() writes.
  virtual std::unique_ptr<TensorFile> open(const std::filesystem::path& path,
                                           const std::vector<ExportedFile>& files,
                                           std::size_t index) const = 0;

  // What stands beside the weights: names and texts. `type`: in which readers hold the model.
  struct Text {
    std::string name;
    std::string text;
  };
  virtual std::vector<Text> texts(const std::vector<ExportedFile>& files, DType type) const = 0;
  // What of such a text decides how the weights are read: nothing else of it is compared.
  virtual nlohmann::json essence(const Text& text) const = 0;
};

std::unique_ptr<Container> make_safetensors_container(const ExportedModel& exported);

}  // namespace roundhouse
