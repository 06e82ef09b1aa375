// Writes sample exports for the Python readers of tests/golden: a model rounded to nearest, in
// every format that can hold it, and beside them the canonical codes, scales and zero points as
// they are in memory.
//
//   export_samples MODEL OUT BLOCKS BITS GROUP_SIZE GRID [dynamic]
//   OUT/compressed-tensors OUT/gptq OUT/dense OUT/dense-float16 OUT/canonical.safetensors
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>

#include "base/error.h"
#include "comm/launcher.h"
#include "stages/export/export.h"
#include "stages/store/block_record.h"
#include "tests/stages/export_world.h"
#include "tests/support/memory_store.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

void write_canonical(const fs::path& path, const DecoderBlock& shape, const Recipe& recipe,
                     int blocks, RunStore& store) {
  std::vector<TensorInfo> infos;
  std::vector<HostTensor> tensors;
  for (int block = 0; block < blocks; ++block) {
    const QuantizedBlock quantized =
        block_from_record(store.load(block_key(recipe.name, block)).value(), shape);
    for (const QuantizedLinear& linear : quantized.linears) {
      const std::string module = shape.prefix(block) + "." + linear.name;
      const auto add = [&](const char* name, const HostTensor& tensor) {
        infos.push_back({module + "." + name, tensor.type(), tensor.shape()});
        tensors.push_back(tensor);
      };
      add("codes", linear.codes);
      add("scales", linear.scales);
      add("zeros", linear.zeros);
      if (linear.group_of_column.count() > 0) add("group_of_column", linear.group_of_column);
    }
  }
  SafetensorsWriter writer(path, infos, {});
  for (std::size_t i = 0; i < infos.size(); ++i) writer.write(infos[i].name, tensors[i].bytes());
  writer.close();
}

Grid grid_of(const char* name) {
  for (const Grid grid :
       {Grid::kAsymGptq, Grid::kAsymAwq, Grid::kAsymAutoRound, Grid::kSymGptq, Grid::kSymFull}) {
    if (name_of(grid) == name) return grid;
  }
  throw InputError(std::string("no grid ") + name);
}

void run(char** arguments, bool reordered) {
  const fs::path source = arguments[0], out = arguments[1];
  const int blocks = std::atoi(arguments[2]);
  const Recipe recipe = rounding_recipe(std::atoi(arguments[3]), std::atoi(arguments[4]),
                                        grid_of(arguments[5]), reordered);
  fs::create_directories(out);
  TemporaryFolder shortened;
  write_shortened_model(source, blocks, shortened.path());
  const CausalLM model(shortened.path());
  const auto backend = make_backend("cpu", {});
  const auto shape = make_decoder_block(model.config(), 16, *backend);
  const auto world = make_local_communicator();
  MemoryStore store;
  NullMonitor monitor;
  round_to_nearest(model, *shape, recipe, *backend, store);
  const auto write = [&](const char* directory, const char* format, DType dtype) {
    const ExportOptions options{.format = format, .dtype = dtype};
    export_checkpoint(model, *shape, recipe, store, options, out / directory, *backend, *world,
                      monitor);
  };
  if (!reordered) write("compressed-tensors", "compressed-tensors", DType::kF16);
  write("gptq", "gptq", DType::kF16);
  if (!reordered && recipe.schemes.front().bits == 4) write("awq", "awq", DType::kF16);
  write("dense", "dense", DType::kF32);
  write("dense-float16", "dense", DType::kF16);
  write_canonical(out / "canonical.safetensors", *shape, recipe, blocks, store);
}

}  // namespace
}  // namespace roundhouse

int main(int argc, char** argv) {
  const bool reordered = argc == 8 && std::strcmp(argv[7], "dynamic") == 0;
  if (argc != 7 && !reordered) {
    std::fprintf(stderr, "usage: export_samples MODEL OUT BLOCKS BITS GROUP_SIZE GRID [dynamic]\n");
    return 2;
  }
  try {
    roundhouse::run(argv + 1, reordered);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "export_samples: %s\n", error.what());
    return 1;
  }
}
