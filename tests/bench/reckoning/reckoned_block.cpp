#include "tests/bench/reckoning/reckoned_block.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "base/dtype.h"
#include "base/file.h"
#include "base/random.h"
#include "comm/launcher.h"
#include "model/architectures/tensor_names.h"
#include "model/causal_lm.h"
#include "model/checkpoint/safetensors.h"
#include "model/config/config_json.h"
#include "stages/flow/monitor.h"
#include "stages/quantize/methods.h"

namespace roundhouse {
namespace {

Activations stream_of(const Samples& samples, std::int64_t hidden, bool values,
                      ActivationBudget& budget, Backend& backend) {
  Activations stream(budget, backend.activation_type(), hidden);
  Random random(3);
  for (int shard = 0; shard < samples.shards(); ++shard) {
    const PartRange range = samples.samples_of_shard(shard);
    stream.reserve(shard, (range.end - range.begin) * samples.length());
    if (!values) continue;
    const std::span<std::byte> bytes = stream.bytes(shard);
    std::vector<float> normal(bytes.size() / size_of(stream.type()));
    std::ranges::generate(normal, [&] { return static_cast<float>(random.normal()); });
    convert(DType::kF32, normal.data(), stream.type(), bytes.data(), normal.size());
  }
  return stream;
}

}  // namespace

BlockResult run_block(const BlockRun& run, Backend& backend) {
  const CausalLM model(run.model);
  const auto decoder = make_decoder_block(model.config(), run.length, backend);
  const Recipe recipe = parse_recipe(run.recipe);
  const auto method = make_method(recipe);
  const Samples samples(run.samples, run.length, std::min(16, run.samples),
                        std::vector<std::int32_t>(static_cast<std::size_t>(run.samples) *
                                                  static_cast<std::size_t>(run.length)));
  ActivationBudget budget(std::size_t{1} << 40, std::filesystem::temp_directory_path(),
                          backend.is_host_memory() ? nullptr : &backend);
  std::optional<Activations> residual, original;
  const auto stream = [&] {
    return stream_of(samples, decoder->hidden_size(), run.on_values, budget, backend);
  };
  if (recipe.needs.quantized_stream) residual.emplace(stream());
  if (recipe.needs.full_precision_stream) original.emplace(stream());

  const auto team = make_local_communicator();
  NullMonitor monitor;
  BlockWeights weights = decoder->load(model.checkpoint(), 0, backend);
  const nlohmann::json nothing_decided;
  BlockTask task{{.backend = backend,
                  .team = *team,
                  .device_team = *team,
                  .decoder = *decoder,
                  .block = 0,
                  .samples = &samples,
                  .monitor = monitor},
                 model.checkpoint(),
                 weights,
                 residual ? &*residual : nullptr,
                 original ? &*original : nullptr,
                 budget,
                 backend.available_bytes() / 4,
                 nothing_decided};
  backend.sync();
  run.begin();
  BlockResult result;
  result.record = method->quantize(task).record;
  run.end();
  result.cost = method->cost(*decoder, run.samples, run.length, backend.activation_type());
  for (const LinearSpec& linear : decoder->linears())
    result.weights += static_cast<double>(linear.rows * linear.cols);
  return result;
}

void write_hollow_model(const ModelConfig& config, const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);
  std::vector<TensorInfo> tensors = tensors_before_blocks(config);
  for (std::int64_t block = 0; block < config.blocks; ++block) {
    const auto more = tensors_of_block(config, block);
    tensors.insert(tensors.end(), more.begin(), more.end());
  }
  const auto more = tensors_after_blocks(config);
  tensors.insert(tensors.end(), more.begin(), more.end());
  nlohmann::json header = nlohmann::json::object();
  std::uint64_t end = 0;
  for (const TensorInfo& tensor : tensors) {
    const std::uint64_t begin = end;
    end += static_cast<std::uint64_t>(element_count(tensor.shape)) * size_of(tensor.type);
    header[tensor.name] = {{"dtype", std::string(name_of(tensor.type))},
                           {"shape", tensor.shape},
                           {"data_offsets", {begin, end}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string head(sizeof(std::uint64_t), '\0');
  const std::uint64_t size = text.size();
  std::memcpy(head.data(), &size, sizeof size);
  const std::filesystem::path file = folder / "model.safetensors";
  write_text_atomically(file, head + text);
  std::filesystem::resize_file(file, head.size() + text.size() + end);
  write_text_atomically(folder / "config.json", config_json(config));
}

}  // namespace roundhouse
