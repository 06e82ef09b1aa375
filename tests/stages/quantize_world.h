// The first block of the bundled model with a few samples: what the tests of quantization work on.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "comm/communicator.h"
#include "comm/device/device_transport.h"
#include "comm/launcher.h"
#include "kernels/backend.h"
#include "model/block/decoder_block.h"
#include "model/causal_lm.h"
#include "stages/flow/micro_batch.h"
#include "stages/quantize/methods.h"
#include "tests/source_folder.h"

namespace roundhouse {

class RecordingMonitor final : public Monitor {
 public:
  void phase(const std::string&) override {}
  void tick() override { ++ticks; }
  void event(const nlohmann::json& fact) override { events.push_back(fact); }
  void say(const std::string& line) override { said.push_back(line); }
  bool stop_requested() override { return false; }

  int ticks = 0;
  std::vector<std::string> said;
  std::vector<nlohmann::json> events;
};

using ShardBytes = std::map<int, std::vector<std::byte>>;

inline std::vector<std::int32_t> random_ids(std::int64_t n, std::uint64_t seed) {
  Random random(seed);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(n));
  for (std::int32_t& id : ids) id = static_cast<std::int32_t>(random.below(1024));
  return ids;
}

// One rank's view of a team that quantizes block 0.
class QuantizeWorld {
 public:
  static constexpr std::int64_t kSamples = 12;

  static std::filesystem::path bundled_model() { return source_folder() / "tests/data/tiny-world"; }
  // Samples of 96 tokens go through a block in one micro-batch a shard, those of 512 in several.
  explicit QuantizeWorld(Communicator& team, int shards = 5, int threads = 1,
                         std::vector<int> broken_samples = {}, std::int64_t length = 96,
                         const std::filesystem::path& model = bundled_model(),
                         const std::string& device = "cpu", bool bf16 = false)
      : team_(team),
        backend_(make_backend(device, {.threads = threads, .bf16 = bf16})),
        model_(model),
        decoder_(make_decoder_block(model_.config(), length, *backend_)),
        samples_(kSamples, length, shards, random_ids(kSamples * length, 7)),
        budget_(std::size_t{1} << 30, std::filesystem::temp_directory_path(),
                backend_->is_host_memory() ? nullptr : backend_.get()),
        weights_(decoder_->load(model_.checkpoint(), 0, *backend_)),
        broken_samples_(std::move(broken_samples)),
        residual_(embed()),
        original_(embed()) {
    if (!backend_->is_host_memory() && team.size() > 1) {
      device_team_ = make_device_transport(
          {.direct = true, .description = "emulated GPUs"}, team,
          {.name = "the team", .peers = all_peers(team), .broadcasts = true}, {});
    }
  }

  BlockTask task() {
    const BlockSite site{.backend = *backend_,
                         .team = team_,
                         .device_team = device_team_ ? *device_team_ : team_,
                         .decoder = *decoder_,
                         .block = 0,
                         .samples = &samples_,
                         .monitor = monitor_};
    return {site,    model_.checkpoint(),  weights_,        residual_.get(), original_.get(),
            budget_, std::size_t{1} << 30, nothing_decided_};
  }
  QuantizedBlock quantize(const nlohmann::json& recipe, BlockProgress* progress = nullptr) {
    BlockTask work = task();
    work.progress = progress;
    const Recipe parsed = parse_recipe(recipe);
    work.overrides = parsed.overrides;
    return skips_all(work) ? keep_block(work) : make_method(parsed)->quantize(work);
  }
  void forward() { run_forward(task(), weights_, *residual_); }
  void forward_original(const BlockWeights& original) { run_forward(task(), original, *original_); }
  // Back to the block's input. Tasks made before are void.
  void restart() {
    residual_ = embed();
    original_ = embed();
  }

  ShardBytes residual() { return bytes_of(*residual_); }
  ShardBytes original() { return bytes_of(*original_); }

  Backend& backend() { return *backend_; }
  const CausalLM& model() const { return model_; }
  const DecoderBlock& decoder() const { return *decoder_; }
  BlockWeights& weights() { return weights_; }
  RecordingMonitor& monitor() { return monitor_; }
  const Samples& samples() const { return samples_; }
  const Checkpoint& checkpoint() const { return model_.checkpoint(); }

 private:
  ShardBytes bytes_of(Activations& activations) {
    ShardBytes result;
    const PartRange shards = parts_of_rank(samples_.shards(), team_.rank(), team_.size());
    for (int shard = shards.begin; shard < shards.end; ++shard) {
      const auto bytes = activations.bytes(shard);
      result[shard].assign(bytes.begin(), bytes.end());
    }
    return result;
  }
  // Embedding rows of this rank's shards; a broken sample begins with NaN.
  std::unique_ptr<Activations> embed() {
    auto residual = std::make_unique<Activations>(budget_, backend_->activation_type(),
                                                  decoder_->hidden_size());
    const PartRange shards = parts_of_rank(samples_.shards(), team_.rank(), team_.size());
    for (int shard = shards.begin; shard < shards.end; ++shard) {
      const PartRange range = samples_.samples_of_shard(shard);
      residual->reserve(shard, (range.end - range.begin) * samples_.length());
      for (int sample = range.begin; sample < range.end; ++sample) {
        Tensor rows = model_.embed(samples_.ids(sample, 1), samples_.length(), *backend_);
        if (std::ranges::find(broken_samples_, sample) != broken_samples_.end()) {
          const float nan = std::numeric_limits<float>::quiet_NaN();
          backend_->upload(std::as_bytes(std::span(&nan, 1)), rows.view().data);
          backend_->sync();
        }
        residual->store(shard, (sample - range.begin) * samples_.length(), rows.view(), *backend_);
      }
    }
    return residual;
  }

  Communicator& team_;
  std::unique_ptr<Transport> device_team_;  // where device memory is not the host's
  std::unique_ptr<Backend> backend_;
  CausalLM model_;
  std::unique_ptr<DecoderBlock> decoder_;
  Samples samples_;
  ActivationBudget budget_;
  BlockWeights weights_;
  std::vector<int> broken_samples_;
  std::unique_ptr<Activations> residual_;
  std::unique_ptr<Activations> original_;
  const nlohmann::json nothing_decided_;
  RecordingMonitor monitor_;
};

template <class T>
std::vector<T> values_of(const HostTensor& tensor) {
  const auto values = tensor.as<T>();
  return {values.begin(), values.end()};
}

inline std::vector<float> download_f32(const Tensor& tensor, Backend& backend) {
  std::vector<float> values(static_cast<std::size_t>(tensor.rows() * tensor.cols()));
  backend.download(tensor.f32(), std::as_writable_bytes(std::span(values)));
  return values;
}

inline Tensor upload_f32(const std::vector<float>& values, std::int64_t rows, std::int64_t cols,
                         Backend& backend) {
  Tensor tensor(backend, DType::kF32, rows, cols);
  backend.upload(std::as_bytes(std::span(values)), tensor.view().data);
  backend.sync();
  return tensor;
}

}  // namespace roundhouse
