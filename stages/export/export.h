// Writes a quantized model as a checkpoint that other tools load.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "model/block/decoder_block.h"
#include "model/causal_lm.h"
#include "stages/flow/monitor.h"
#include "stages/quantize/recipe.h"
#include "stages/store/run_store.h"

namespace roundhouse {

struct ExportOptions {
  std::string format;  // "compressed-tensors", "gptq", "awq", "squeezellm" or "dense"
  // Of "dense" weights, and of all that is not quantized: F16, BF16 or F32. Nothing: that of each tensor in the checkpoint.
  std::optional<DType> dtype = {};
  std::int64_t max_shard_bytes = std::int64_t{5} << 30;
  bool replace =
      false;  // the directory is known to be an export of ours, even if its SHA256SUMS is gone
};

std::vector<std::string> export_formats();

// Throws InputError, naming recipe and format, if this format cannot hold what this recipe makes: checked before any work.
void check_exportable(const Recipe& recipe, const DecoderBlock& decoder, int blocks,
                      const std::string& format);

// The same of the model, whatever its recipe: its architecture, or its tokenizer where the format has a place for that. Reads no
// weights.
void check_model_exportable(const CausalLM& model, const Recipe& recipe, const std::string& format);

// Throws InputError naming the tensor if a value outside the blocks, or of a norm or bias, is too large for the type in which it
// would leave. Reads those tensors only where the type narrows.
void check_kept_values(const CausalLM& model, const ExportOptions& options);

// Collective over `world`. Every block must be in the store. Files are cut by size, not by rank, and each is written by one
// rank (file i by rank i % size), tensor by tensor; rank 0 adds index, config.json, the side files (side_files.h) and SHA256SUMS.
// `directory` appears complete or not at all: everything is written beside it and renamed at the end. False if it stopped
// between two files because it was asked to: nothing is left then.
bool export_checkpoint(const CausalLM& model, const DecoderBlock& decoder, const Recipe& recipe,
                       RunStore& store, const ExportOptions& options,
                       const std::filesystem::path& directory, Communicator& world,
                       Monitor& monitor);

}  // namespace roundhouse
