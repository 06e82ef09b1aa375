// Which tensors an export has, and in which of its files each lies.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "comm/communicator.h"
#include "model/architectures/tensor_names.h"
#include "model/block/model_units.h"
#include "stages/export/container.h"
#include "stages/export/export.h"

namespace roundhouse {

// What is exported, as what. All of it outlives what is made of it.
struct ExportJob {
  const CausalLM& model;
  const DecoderBlock& decoder;
  const Recipe& recipe;
  RunStore& store;
  const ExportOptions& options;
  const ExportFormat& format;
  Monitor& monitor;
};

// What is never cut in two: one linear, or one tensor that stays as it is.
struct Piece {
  std::vector<TensorInfo> tensors;
  std::string source;                   // tensor of the original checkpoint; empty for a linear
  DType type = DType::kF32;             // in which dense values leave
  int block = -1;                       // where it is; -1: outside the blocks
  std::size_t linear = 0;               // index into DecoderBlock::linears()
  std::optional<HostTensor> made = {};  // the container's own: its values

  std::int64_t bytes() const {
    std::int64_t sum = 0;
    for (const TensorInfo& tensor : tensors) {
      sum += element_count(tensor.shape) * static_cast<std::int64_t>(size_of(tensor.type));
    }
    return sum;
  }
};

// Decided from sizes and schemes alone: the same on every rank and for any number of them.
class FilePlan {
 public:
  // `attributes` are those of the records of all units, in their order. Throws InputError if the format cannot hold them, Error if a
  // linear is not what the recipe announces.
  FilePlan(const ExportJob& job, const nlohmann::json& attributes);

  std::size_t count() const { return files_.size(); }
  const std::vector<ExportedFile>& files() const { return files_; }
  const std::string& name(std::size_t file) const { return files_[file].name; }
  const std::vector<Piece>& pieces(std::size_t file) const { return pieces_[file]; }
  const Container& container() const { return *container_; }
  const ModelUnits& units() const { return units_; }
  const ExportedLinear& exported(int block, std::size_t linear) const;
  std::string unit_called(int block) const {
    return unit_name(block, units_.blocks(), job_.recipe.include);
  }
  // What the recipe announces of such a linear. Throws Error if that is nothing, where the config will speak of it.
  LinearScheme announced(const LinearScheme& is, const LinearSpec& spec,
                         const std::string& module) const;
  // What config.json says of all: the type in which readers hold the model.
  DType declared_type() const;

 private:
  DType type_of(const std::string& source) const;
  void add_kept(std::vector<Piece>& pieces, const std::string& name, int block = -1,
                const std::string& as = "") const;
  void add_linear(std::vector<Piece>& pieces, const std::string& source, int block,
                  std::size_t linear) const;
  std::optional<std::size_t> quantized_outside(bool head) const;
  bool unties() const;
  std::vector<Piece> list_pieces() const;
  void cut(std::vector<Piece> pieces);

  const ExportJob& job_;
  const ModelUnits units_;
  const OuterLayout outer_;
  std::vector<ExportedLinear> linears_;  // unit by unit
  std::unique_ptr<Container> container_;
  std::vector<ExportedFile> files_;
  std::vector<std::vector<Piece>> pieces_;  // by file
};

// Collective: of what all ranks find in the records. `before`: what else may fail on one rank first.
std::unique_ptr<FilePlan> plan_files(const ExportJob& job, Communicator& world,
                                     const std::function<void()>& before);

// Lines that were gathered from all ranks, each with its '\n'.
std::vector<std::string> lines_of(const std::vector<std::vector<std::byte>>& ranks);

}  // namespace roundhouse
