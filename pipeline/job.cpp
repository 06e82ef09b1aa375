#include "pipeline/job.h"

#include <sched.h>

#include <algorithm>
#include <thread>

#include "base/error.h"
#include "pipeline/schedule.h"
#include "stages/quantize/method.h"

namespace roundhouse {
namespace {

// Processors this process may use: its own share if the launcher has bound it, else an equal part of the node's.
int choose_threads(int local_size) {
  cpu_set_t set;
  CPU_ZERO(&set);
  const int all = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  const int mine = sched_getaffinity(0, sizeof set, &set) == 0 ? std::max(1, CPU_COUNT(&set)) : all;
  return mine < all ? mine : std::max(1, all / local_size);
}

// With identity.json damaged nothing but the records says what the run was made with. Where they
// say that it was something else, it is not for us to make them all again.
void check_records_without_identity(const RunConfig& config, const RunInputs& inputs) {
  const FoundIdentity found = read_identity(config.run);
  if (found.identity || found.why == "missing") return;
  Hdf5Store store(config.run);
  set_identities(store, config, inputs);
  for (const Recipe& recipe : config.recipes) {
    for (int block = 0; block < inputs.blocks; ++block) {
      const std::string key = block_key(recipe.name, block);
      const std::string why = store.check(key);
      if (why != Hdf5Store::kForeign && why != Hdf5Store::kEarlier) continue;
      throw InputError((config.run / "identity.json").string() + " is damaged (" + found.why +
                       "), and " + key + " " + why +
                       ". Put the old settings and files back, use another run folder, or delete "
                       "identity.json: then what does not belong here is made again");
    }
  }
}

}  // namespace

void set_identities(Hdf5Store& store, const RunConfig& config, const RunInputs& inputs) {
  store.set_identity("calibration", calibration_identity(config, inputs));
  for (const Recipe& recipe : config.recipes) {
    store.set_identity("recipes/" + recipe.name, recipe_identity(config, inputs, recipe));
  }
}

std::unique_ptr<Backend> make_rank_backend(const std::string& device, int threads,
                                           const LaunchSession& session) {
  std::string name = device;
  if (name == "auto") name = has_device("cuda") ? "cuda" : "cpu";
  if (!has_device(name)) throw InputError("device: this build or machine has no \"" + name + "\"");
  return make_backend(name,
                      {.threads = threads > 0 ? threads : choose_threads(session.local_size()),
                       .device = session.local_rank()});
}

Job::Job(LaunchSession& session, RunConfig config)
    : config_(std::move(config)), world_(session.world()) {
  model_ = std::make_unique<CausalLM>(config_.model);
  tokenizer_ = load_tokenizer(config_.model);
  if (tokenizer_->vocabulary() > model_->config().vocabulary) {
    throw InputError(
        config_.model.string() + ": the tokenizer has " + std::to_string(tokenizer_->vocabulary()) +
        " pieces, the model's vocabulary only " + std::to_string(model_->config().vocabulary));
  }
  check_lengths();

  backend_ = make_rank_backend(config_.device, config_.threads, session);
  std::int64_t longest = needs_calibration(config_) ? config_.calibration.sequence_length : 1;
  for (const PerplexityTask& task : config_.perplexity)
    longest = std::max<std::int64_t>(longest, task.window);
  shape_ = make_decoder_block(model_->config(), longest, *backend_);
  for (const Recipe& recipe : config_.recipes) {
    for (const std::string& format : config_.export_formats) {
      check_exportable(recipe, model_->config(), *shape_, format);
    }
  }

  settle();
  const std::size_t budget =
      config_.activation_memory_gib > 0
          ? static_cast<std::size_t>(config_.activation_memory_gib * 0x1p30)
          : available_host_memory() / 2 / static_cast<std::size_t>(session.local_size());
  budget_ = std::make_unique<ActivationBudget>(
      budget, config_.scratch.empty() ? config_.run / "scratch" : config_.scratch,
      backend_->is_host_memory() ? nullptr : backend_.get());
  const std::size_t sharers =
      backend_->is_host_memory() ? static_cast<std::size_t>(session.local_size()) : 1;
  saved_activation_bytes_ = config_.saved_activation_gib > 0
                                ? static_cast<std::size_t>(config_.saved_activation_gib * 0x1p30)
                                : backend_->available_bytes() / 4 / sharers;
  journal_ = std::make_unique<Journal>(config_.run);
  monitor_ = std::make_unique<JobMonitor>(*world_, journal_.get(), config_.stall_seconds,
                                          config_.time_limit_minutes);
  store_->on_damage = [this](const std::string& key, const std::string& why) {
    report_damage(key, why);
  };
  for (const auto& [file, why] : damaged_) report_damage(file, why);
  model_identity_ = std::make_unique<ModelIdentity>(*model_, config_.run, *world_, *monitor_);
}

Job::~Job() = default;

// What the run is of: rank 0 looks, all ranks know.
void Job::settle() {
  nlohmann::json view;
  if (first()) {
    std::filesystem::create_directories(config_.run);
    lock_ = std::make_unique<RunLock>(config_.run);
    const RunInputs inputs = read_inputs(config_);
    check_records_without_identity(config_, inputs);
    Settled settled = settle_config(config_, inputs);
    damaged_ = std::move(settled.damaged);
    const std::string torn = repair_journal(config_.run);
    if (!torn.empty()) damaged_.push_back({"journal.jsonl", torn});
    view = {settled.inputs.model, settled.inputs.tokenizer, settled.inputs.calibration_text,
            settled.inputs.blocks};
  }
  view = nlohmann::json::parse(share(view.dump()));
  inputs_ = {view[0].get<std::string>(), view[1].get<std::string>(), view[2].get<std::string>(),
             view[3].get<int>()};
  store_ = std::make_unique<Hdf5Store>(config_.run);
  set_identities(*store_, config_, inputs_);
}

void Job::check_lengths() const {
  const auto check = [&](const std::string& key, std::int64_t tokens) {
    if (tokens > model_->config().max_positions) {
      throw InputError(key + ": " + std::to_string(tokens) + " tokens, but the model has only " +
                       std::to_string(model_->config().max_positions) + " positions");
    }
  };
  if (needs_calibration(config_))
    check("calibration.sequence_length", config_.calibration.sequence_length);
  for (const PerplexityTask& task : config_.perplexity)
    check("evaluate.perplexity window of " + task.name, task.window);
}

void Job::report_damage(const std::string& what, const std::string& why) {
  monitor_->say(what + " is damaged (" + why + "): it is made again");
  monitor_->event({{"event", "damaged"}, {"record", what}, {"why", why}});
}

const Recipe& Job::recipe(const std::string& name) const {
  const auto found = std::ranges::find(config_.recipes, name, &Recipe::name);
  if (found != config_.recipes.end()) return *found;
  std::string names;
  for (const std::string& each : recipe_names()) names += (names.empty() ? "" : ", ") + each;
  throw InputError("no recipe \"" + name + "\" in " + config_.run.string() + " (it has " + names +
                   ")");
}

std::vector<std::string> Job::recipe_names() const {
  std::vector<std::string> names;
  for (const Recipe& recipe : config_.recipes) names.push_back(recipe.name);
  return names;
}

bool Job::stop_requested() {
  return world_->all_reduce_max(monitor_->stop_requested() ? 1 : 0) != 0;
}

std::string Job::share(std::string text) {
  std::int64_t size = static_cast<std::int64_t>(text.size());
  world_->broadcast(std::as_writable_bytes(std::span(&size, 1)), 0);
  text.resize(static_cast<std::size_t>(size));
  world_->broadcast(std::as_writable_bytes(std::span(text)), 0);
  return text;
}

bool needs_calibration(const RunConfig& config) {
  return std::ranges::any_of(
      config.recipes, [](const Recipe& recipe) { return make_method(recipe)->streams().any(); });
}

std::vector<std::string> complete_recipes(Job& job) {
  std::vector<std::string> complete;
  std::vector<ContentsByTensor> made_of;
  for (const Recipe& recipe : job.config().recipes) {
    RecipeState state =
        inspect_recipe(recipe, static_cast<int>(job.model().config().blocks),
                       job.config().calibration.shards, 0, job.store(), job.world());
    if (state.missing() == 0) complete.push_back(recipe.name);
    made_of.push_back(std::move(state.made_of));
  }
  job.model_identity().settle(made_of);
  return complete;
}

}  // namespace roundhouse
