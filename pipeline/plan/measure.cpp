#include "pipeline/plan/measure.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/file.h"
#include "base/random.h"
#include "comm/launcher.h"
#include "kernels/host_memory.h"
#include "kernels/host_threads.h"
#include "model/causal_lm.h"
#include "model/synthetic.h"
#include "pipeline/run/hdf5_store.h"
#include "stages/flow/last_fact.h"
#include "stages/flow/micro_batch.h"
#include "stages/quantize/methods.h"
#include "stages/sensitivity/gradient_walk.h"
#include "stages/store/block_record.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kWidest = 2048;
constexpr std::int64_t kTokens = 8192;  // so many samples as make these
constexpr int kIterations = 4;          // of learned rounding
constexpr std::size_t kFileBytes = std::size_t{256} << 20;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// A folder of this process, gone with it.
class Scratch {
 public:
  explicit Scratch(const fs::path& within)
      : path_(within / fmt::format(".roundhouse-measure-{}", getpid())) {
    fs::create_directories(path_);
  }
  ~Scratch() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

fs::path nearest_folder(fs::path path) {
  std::error_code error;
  path = fs::absolute(path);
  while (!fs::is_directory(path, error) && path.has_relative_path()) path = path.parent_path();
  return path;
}

class Measurement {
 public:
  Measurement(const RunConfig& config, const ModelConfig& model, const Scratch& scratch)
      : config_(config),
        scratch_(scratch),
        device_(config.device != "cpu" && has_device("cuda") ? "cuda" : "cpu"),
        rates_(rates_of_device(device_ == "cuda" ? "h200" : "cpu")),
        backend_(make_backend(device_, {.threads = config.threads, .bf16 = config.cpu_bf16})) {
    rates_.name = device_;
    rates_.source = "measured: " + backend_->description();
    rates_.host_bytes = static_cast<double>(available_host_memory());
    rates_.ranks_a_node = 1;
    rates_.bf16 = device_ == "cpu" && config.cpu_bf16;
    if (!backend_->is_host_memory())
      rates_.device_bytes = static_cast<double>(backend_->available_bytes());
    SyntheticOptions synthetic;
    synthetic.config = model.hidden_size > kWidest ? shape_like("llama-1.1b") : model;
    synthetic.config.blocks = 1;
    write_synthetic_model(synthetic, scratch.path() / "model");
    model_ = std::make_unique<CausalLM>(scratch.path() / "model");
    set_host_threads(config.threads);
    const auto wanted = static_cast<std::int64_t>(config.calibration.sequence_length);
    length_ = std::min(wanted, model_->config().max_positions);
    decoder_ = make_decoder_block(model_->config(), length_, *backend_);
    for (const LinearSpec& linear : decoder_->linears())
      weights_ += static_cast<double>(linear.rows * linear.cols);
    const std::int64_t count = std::max<std::int64_t>(4, kTokens / length_);
    Random random(1);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(count * length_));
    for (std::int32_t& id : ids) {
      id = static_cast<std::int32_t>(
          random.below(static_cast<std::uint64_t>(model_->config().vocabulary)));
    }
    samples_.emplace(count, length_, 4, std::move(ids));
    budget_ =
        std::make_unique<ActivationBudget>(available_host_memory() / 2, scratch.path(),
                                           backend_->is_host_memory() ? nullptr : backend_.get());
  }

  DeviceRates run() {
    std::map<std::string, Recipe> methods;
    for (const Recipe& recipe : config_.recipes) methods.emplace(recipe.method, recipe);
    const Recipe* table = nullptr;
    bool gradients = false;
    for (const auto& [method, recipe] : methods) {
      gradients = gradients || recipe.needs.gradients.has_value();
      if (recipe.needs.makes_blocks_of_gradients()) {
        table = &recipe;
      } else {
        measure_method(recipe);
      }
    }
    if (gradients) measure_gradients(table);
    measure_files();
    return std::move(rates_);
  }

 private:
  BlockSite site(Monitor& monitor) {
    return {.backend = *backend_,
            .team = *team_,
            .device_team = *team_,
            .decoder = *decoder_,
            .block = 0,
            .samples = &*samples_,
            .monitor = monitor};
  }

  std::unique_ptr<Activations> embed() {
    auto stream = std::make_unique<Activations>(*budget_, backend_->activation_type(),
                                                model_->config().hidden_size);
    for (int shard = 0; shard < samples_->shards(); ++shard) {
      const PartRange range = samples_->samples_of_shard(shard);
      stream->reserve(shard, (range.end - range.begin) * length_);
      for (const MicroBatch& batch : micro_batches_of_shard(*samples_, shard)) {
        const Tensor rows =
            model_->embed(samples_->ids(batch.first_sample, batch.sequences), length_, *backend_);
        stream->store(shard, batch.first_row, rows.view(), *backend_);
      }
    }
    return stream;
  }

  BlockWeights load() {
    const double start = now();
    BlockWeights weights = decoder_->load(model_->checkpoint(), 0, *backend_);
    backend_->sync();
    // The synthetic checkpoint is float16.
    rates_.load = 2 * weights_ / (now() - start);
    return weights;
  }

  void measure_method(Recipe recipe) {
    if (recipe.options.contains("iterations")) recipe.options["iterations"] = kIterations;
    const auto method = make_method(recipe);
    NullMonitor monitor;
    std::unique_ptr<Activations> residual, original;
    if (recipe.needs.quantized_stream) residual = embed();
    if (recipe.needs.full_precision_stream) original = embed();
    (void)load();  // what is slow the first time only
    BlockWeights weights = load();
    // What LLM-MQ would have decided; others do not look.
    const nlohmann::json decided = {
        {"bits", nlohmann::json::array({std::vector<int>(decoder_->linears().size(), 3)})}};
    BlockTask task{site(monitor),
                   model_->checkpoint(),
                   weights,
                   residual.get(),
                   original.get(),
                   *budget_,
                   backend_->available_bytes() / 4,
                   decided};
    const QuantizedBlock block = method->quantize(task);
    for (const auto& [phase, flops] : block.record["flops"].items()) {
      const double seconds = block.record["phases"].value(phase, 0.0);
      if (seconds > 0) rates_.phases[recipe.method + "." + phase] = flops.get<double>() / seconds;
    }
    const double solving = block.record["phases"].value("solve", 0.0);
    if (recipe.method == "rtn" && solving > 0) rates_.round = weights_ / solving;
    commit(recipe, block);
  }

  void commit(const Recipe& recipe, const QuantizedBlock& block) {
    Hdf5Store store(scratch_.path() / "run");
    double start = now();
    (void)to_record(block);
    rates_.commit = weights_ / (now() - start);
    start = now();
    store.commit(block_key(recipe.name, 0), to_record(block));
    rates_.pack = weights_ / (now() - start);
  }

  void measure_gradients(const Recipe* table) {
    LastFact monitor;
    walk_gradients(
        {.backend = *backend_,
         .team = *team_,
         .device_team = *team_,
         .model = *model_,
         .decoder = *decoder_,
         .samples = *samples_,
         .budget = *budget_,
         .saved_activation_bytes = backend_->available_bytes() / 4,
         .monitor = monitor,
         .wanted = {.sum = false, .squares = true},
         .blocks = {0, 1},
         .take = [&](const BlockSite& at, BlockWeights& weights, BlockGradients& gradients) {
           cluster(table, at, weights, gradients);
         }});
    for (const char* phase : {"forward", "backward"}) {
      const double flops = monitor.last.at("flops").value(phase, 0.0);
      const double seconds = monitor.last.at("phases").value(phase, 0.0);
      if (flops > 0 && seconds > 0)
        rates_.phases[std::string("gradients.") + phase] = flops / seconds;
    }
  }

  void cluster(const Recipe* table, const BlockSite& at, BlockWeights& weights,
               BlockGradients& gradients) {
    SummedGradients sums;
    for (std::size_t i = 0; i < decoder_->linears().size(); ++i)
      sums.push_back(gradients.finish(static_cast<int>(i)));
    if (table == nullptr) return;
    nlohmann::json plain = {{"method", table->method}, {"bits", table->schemes.front().bits}};
    const Recipe recipe = parse_recipe(plain);
    const nlohmann::json nothing_decided;
    BlockTask task{at,
                   model_->checkpoint(),
                   weights,
                   nullptr,
                   nullptr,
                   *budget_,
                   backend_->available_bytes() / 4,
                   nothing_decided,
                   &sums};
    const QuantizedBlock block = make_method(recipe)->quantize(task);
    const double seconds = block.record["phases"].value("solve", 0.0);
    if (seconds > 0) rates_.cluster = weights_ / seconds;
  }

  void measure_files() {
    const fs::path path = scratch_.path() / "file";
    const std::string bytes(kFileBytes, '*');
    double start = now();
    write_text_atomically(path, bytes);
    rates_.file_write = static_cast<double>(kFileBytes) / (now() - start);
    std::vector<std::byte> back(kFileBytes);
    start = now();
    InputFile file(path);
    (void)file.read(back);
    rates_.file_read = static_cast<double>(kFileBytes) / (now() - start);
    rates_.file_system = std::max(rates_.file_read, rates_.file_write);
  }

  const RunConfig& config_;
  const Scratch& scratch_;
  std::string device_;
  DeviceRates rates_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<CausalLM> model_;
  std::unique_ptr<DecoderBlock> decoder_;
  std::unique_ptr<Communicator> team_ = make_local_communicator();
  std::unique_ptr<ActivationBudget> budget_;
  std::optional<Samples> samples_;
  std::int64_t length_ = 0;
  double weights_ = 0;
};

}  // namespace

DeviceRates measure_rates(const RunConfig& config, const ModelConfig& model) {
  const Scratch scratch(nearest_folder(config.run));
  return Measurement(config, model, scratch).run();
}

}  // namespace roundhouse
