// Writes what a run's k-means of weights starts from, which a run itself never stores: for each linear the squares of the gradient's
// elements, summed over sequences (stages/sensitivity/block_gradients.h). For validation/compare_kmeans.py.
//
//   fisher_values MODEL WINDOWS OUT.safetensors
//
// WINDOWS is the record of token windows in a run's folder: RUN/gradients/windows-100x512.h5. OUT holds F32 tensors named as the
// weights of the model, with the same bits as in the run.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <numeric>
#include <optional>
#include <vector>

#include "base/error.h"
#include "comm/launcher.h"
#include "model/checkpoint/safetensors.h"
#include "pipeline/run/hdf5_store.h"
#include "stages/calibrate/samples.h"
#include "stages/sensitivity/gradient_walk.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

Samples read_windows(const fs::path& file) {
  const fs::path folder = file.parent_path();
  Hdf5Store store(folder.parent_path());
  const std::optional<Record> record = store.load(folder.filename() / file.stem());
  if (!record) throw InputError(file.string() + ": not a record of token windows");
  return samples_from_record(*record);
}

void run(const fs::path& folder, const fs::path& windows, const fs::path& out) {
  const CausalLM model(folder);
  const Samples samples = read_windows(windows);
  const auto backend = make_backend("cpu", {});
  const auto decoder = make_decoder_block(model.config(), samples.length(), *backend);
  const auto team = make_local_communicator();
  NullMonitor monitor;
  ActivationBudget budget(std::size_t{1} << 40, fs::temp_directory_path());
  std::vector<TensorInfo> infos;
  std::vector<HostTensor> tensors;
  const auto take = [&](const BlockSite& site, BlockWeights&, BlockGradients& gradients) {
    for (std::size_t i = 0; i < decoder->linears().size(); ++i) {
      const LinearSpec& spec = decoder->linears()[i];
      infos.push_back({decoder->prefix(site.block) + "." + spec.name + ".weight",
                       DType::kF32,
                       {spec.rows, spec.cols}});
      HostTensor& values = tensors.emplace_back(DType::kF32, Shape{spec.rows, spec.cols});
      for (const BlockGradients::Tile& tile : gradients.finish(static_cast<int>(i))) {
        Tensor dense(*backend, DType::kF32, tile.squares.rows, tile.squares.cols);
        backend->copy(tile.squares, dense.view());
        const auto bytes = static_cast<std::size_t>(spec.cols) * sizeof(float);
        backend->download(dense.f32(),
                          values.bytes().subspan(static_cast<std::size_t>(tile.first) * bytes,
                                                 static_cast<std::size_t>(dense.rows()) * bytes));
      }
    }
    std::printf("block %d\n", site.block);
    std::fflush(stdout);
  };
  walk_gradients({.backend = *backend,
                  .team = *team,
                  .device_team = *team,
                  .model = model,
                  .decoder = *decoder,
                  .samples = samples,
                  .budget = budget,
                  .saved_activation_bytes = backend->available_bytes() / 4,
                  .monitor = monitor,
                  .wanted = {.sum = false, .squares = true},
                  .blocks = {0, static_cast<int>(model.config().blocks)},
                  .take = take});
  std::vector<std::size_t> order(infos.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::sort(order, {}, [&](std::size_t i) { return infos[i].name; });
  std::vector<TensorInfo> sorted;
  for (const std::size_t i : order) sorted.push_back(infos[i]);
  SafetensorsWriter writer(out, sorted, {});
  for (const std::size_t i : order) writer.write(infos[i].name, tensors[i].bytes());
  writer.close();
}

}  // namespace
}  // namespace roundhouse

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: fisher_values MODEL WINDOWS OUT.safetensors\n");
    return 2;
  }
  try {
    roundhouse::run(argv[1], argv[2], argv[3]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "fisher_values: %s\n", error.what());
    return 1;
  }
}
