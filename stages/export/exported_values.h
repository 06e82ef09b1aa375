// What the pieces of an export hold: the run's records, and the model's own tensors.
#pragma once

#include <functional>
#include <optional>
#include <span>

#include "stages/export/file_plan.h"

namespace roundhouse {

// Keeps the last block: pieces come block by block.
class ExportedValues {
 public:
  ExportedValues(const ExportJob& job, const FilePlan& plan) : job_(job), plan_(plan) {}

  // Throws Error if the block is not there, or is another one, or the linear is not what the recipe announces.
  const QuantizedLinear& linear(const Piece& piece);
  // Of a piece with a source: its bytes as they leave, in slices: an embedding may be larger than a block. Throws InputError naming the
  // tensor if a value does not fit.
  void each_slice(const Piece& piece, const std::function<void(std::span<const std::byte>)>& use);

 private:
  const QuantizedBlock& load_block(int block);
  HostView kept(const Piece& piece);

  const ExportJob& job_;
  const FilePlan& plan_;
  std::optional<QuantizedBlock> block_;
};

}  // namespace roundhouse
