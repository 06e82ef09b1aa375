// Writes sample exports for the Python readers of tests/golden: a model rounded to nearest, in
// every format that can hold it, and beside them the canonical codes, scales and zero points as
// they are in memory.
//
//   export_samples MODEL OUT BLOCKS BITS GROUP_SIZE GRID [dynamic | sparse]
//   OUT/compressed-tensors OUT/gptq ... OUT/dense OUT/dense-float16 OUT/canonical.safetensors
//
// BITS may be several, with commas: linears then differ. GRID may be "table".
#include <cstdio>
#include <cstdlib>
#include <exception>

#include "base/error.h"
#include "comm/launcher.h"
#include "stages/export/compare.h"
#include "stages/export/export.h"
#include "stages/store/block_record.h"
#include "tests/stages/export_world.h"
#include "tests/support/memory_store.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

void write_canonical(const fs::path& path, const DecoderBlock& decoder, const Recipe& recipe,
                     int blocks, RunStore& store) {
  std::vector<TensorInfo> infos;
  std::vector<HostTensor> tensors;
  for (int block = 0; block < blocks; ++block) {
    const QuantizedBlock quantized =
        block_from_record(store.load(block_key(recipe.name, block)).value(), decoder);
    for (const QuantizedLinear& linear : quantized.linears) {
      const std::string module = decoder.prefix(block) + "." + linear.name;
      const auto add = [&](const char* name, const HostTensor& tensor) {
        infos.push_back({module + "." + name, tensor.type(), tensor.shape()});
        tensors.push_back(tensor);
      };
      add("codes", linear.codes);
      if (!linear.has_table()) {
        add("scales", linear.scales);
        add("zeros", linear.zeros);
      }
      if (linear.group_of_column.count() > 0) add("group_of_column", linear.group_of_column);
      if (linear.has_table()) add("table", linear.table);
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

Recipe recipe_of(char** arguments, const std::string& more) {
  const std::string bits = arguments[0], grid = arguments[2];
  LinearScheme scheme{.group_size = std::atoi(arguments[1]),
                      .reordered = more == "dynamic",
                      .sparse = more == "sparse"};
  if (grid == "table") {
    scheme.kind = LinearScheme::Kind::kTable;
  } else {
    scheme.grid = grid_of(arguments[2]);
  }
  Recipe recipe;
  recipe.name = "sample";
  recipe.method = "rtn";
  recipe.options = nlohmann::json::object();
  for (std::size_t at = 0; at < bits.size(); at = bits.find(',', at) + 1) {
    scheme.bits = std::atoi(bits.c_str() + at);
    recipe.schemes.push_back(scheme);
    if (bits.find(',', at) == bits.npos) break;
  }
  return recipe;
}

void run(char** arguments, const std::string& more) {
  const fs::path source = arguments[0], out = arguments[1];
  const int blocks = std::atoi(arguments[2]);
  const Recipe recipe = recipe_of(arguments + 3, more);
  fs::create_directories(out);
  TemporaryFolder shortened;
  write_shortened_model(source, blocks, shortened.path());
  const CausalLM model(shortened.path());
  const auto backend = make_backend("cpu", {});
  const auto decoder = make_decoder_block(model.config(), 16, *backend);
  const auto world = make_local_communicator();
  MemoryStore store;
  NullMonitor monitor;
  round_to_nearest(model, *decoder, recipe, *backend, store);
  const auto write = [&](const std::string& directory, const std::string& format, DType dtype) {
    const ExportOptions options{.format = format, .dtype = dtype};
    export_checkpoint(model, *decoder, recipe, store, options, out / directory, *world, monitor);
  };
  for (const std::string& format : export_formats()) {
    try {
      check_exportable(recipe, *decoder, blocks, format);
      check_model_exportable(model, recipe, format);
    } catch (const InputError&) {
      continue;  // the readers know which must be there
    }
    write(format, format, format == "dense" || format == "squeezellm" ? DType::kF32 : DType::kF16);
  }
  write("dense-float16", "dense", DType::kF16);
  write_canonical(out / "canonical.safetensors", *decoder, recipe, blocks, store);
}

}  // namespace
}  // namespace roundhouse

int main(int argc, char** argv) {
  const std::string more = argc == 8 ? argv[7] : "";
  if (argc != 7 && more != "dynamic" && more != "sparse") {
    std::fprintf(
        stderr, "usage: export_samples MODEL OUT BLOCKS BITS GROUP_SIZE GRID [dynamic | sparse]\n");
    return 2;
  }
  try {
    roundhouse::run(argv + 1, more);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "export_samples: %s\n", error.what());
    return 1;
  }
}
