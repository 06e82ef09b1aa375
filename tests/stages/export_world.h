// Small quantized models for the tests of export, and the sample exports that the Python readers
// check.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "model/block/decoder_block.h"
#include "model/causal_lm.h"
#include "model/quantized/quantized_linear.h"
#include "stages/quantize/recipe.h"
#include "stages/store/run_store.h"
#include "tests/base/temporary_folder.h"

namespace roundhouse {

struct MiniModel {
  int blocks = 3;
  std::int64_t hidden_size = 64;
  std::int64_t intermediate_size = 96;
  bool tied = false;
  DType dtype = DType::kF32;
  float norm_value = 1.0f;  // of the first norm of the last block
};
// A LLaMA of random weights with a head_dim of 32 and two query heads to a key head, and files that
// stand for a tokenizer.
void write_mini_model(const std::filesystem::path& directory, const MiniModel& options);

// `blocks` blocks of another model: its config with fewer layers, links to its files.
void write_shortened_model(const std::filesystem::path& from, int blocks,
                           const std::filesystem::path& to);

// The recipe of round_to_nearest(): as parse_recipe() would leave it.
Recipe rounding_recipe(int bits, std::int64_t group_size, Grid grid = Grid::kAsymGptq,
                       bool reordered = false);

// A linear of random codes, scales and zero points; some scales are negative on a symmetric full
// grid.
QuantizedLinear random_linear(const std::string& name, std::int64_t rows, std::int64_t cols,
                              int bits, std::int64_t group_size, Grid grid, std::uint64_t seed);

// The same with lookup tables of random values.
QuantizedLinear random_table_linear(const std::string& name, std::int64_t rows, std::int64_t cols,
                                    int bits, std::uint64_t seed);
// A sparse part in which each weight of the linear has a place with this probability.
SparsePart random_sparse_part(const QuantizedLinear& linear, double density, std::uint64_t seed);

// Rounds every block to its nearest codes and commits it. Of several schemes linears with one input have the same, and all occur.
// Reordered: the columns are grouped in a random order. Tables hold quantiles, sparse parts what the codes of large weights miss.
void round_to_nearest(const CausalLM& model, const DecoderBlock& decoder, const Recipe& recipe,
                      Backend& backend, RunStore& store);

}  // namespace roundhouse
