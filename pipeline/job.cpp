#include "pipeline/job.h"

#include <algorithm>

#include <fmt/format.h>

#include "base/error.h"
#include "base/hash.h"
#include "base/json_file.h"
#include "base/write_guard.h"
#include "comm/counted_communicator.h"
#include "comm/together.h"
#include "kernels/host_threads.h"
#include "model/architectures/tensor_names.h"
#include "pipeline/run/record_seal.h"
#include "pipeline/run/run_files.h"
#include "pipeline/run/whole_records.h"
#include "pipeline/schedule/schedule.h"
#include "pipeline/start/scratch.h"
#include "pipeline/steps/evaluate_step.h"
#include "stages/export/engines.h"
#include "stages/export/export.h"

namespace roundhouse {
namespace {

// With identity.json damaged nothing but the records says what the run was made with. Where they
// say that it was something else, it is not for us to make them all again.
void check_records_without_identity(const RunConfig& config, const RunInputs& inputs) {
  const FoundIdentity found = read_identity(config.run);
  if (found.identity || found.why == "missing") return;
  Hdf5Store store(config.run);
  set_identities(store, config, inputs);
  for (const Recipe& recipe : config.recipes) {
    for (int block = 0; block < recipe.units(inputs.blocks); ++block) {
      const std::string key = block_key(recipe.name, block);
      const std::string why = store.check(key);
      if (why != kForeignRecord && why != kEarlierRecord) continue;
      throw InputError((config.run / "identity.json").string() + " is damaged (" + found.why +
                       "), and " + key + " " + why +
                       ". Put the old settings and files back, use another run folder, or delete "
                       "identity.json: then what does not belong here is made again");
    }
  }
}

void guard_writes(const std::filesystem::path& run, const std::string& token) {
  set_write_guard([guard = LeaseGuard(run, token)] { guard.check(); });
}

}  // namespace

void set_identities(Hdf5Store& store, const RunConfig& config, const RunInputs& inputs) {
  std::vector<std::string> sets = {kDefaultCalibration};
  for (const auto& [name, set] : config.calibrations) sets.push_back(name);
  for (const std::string& set : sets) {
    store.set_identity(calibration_key(set), calibration_identity(config, inputs, set));
    store.set_identity(shared_snapshots(set), stream_identity(config, inputs, set));
  }
  store.set_identity("gradients", stream_identity(config, inputs));
  for (const Recipe& recipe : config.recipes) {
    store.set_identity("recipes/" + recipe.name, recipe_identity(config, inputs, recipe));
  }
}

RankThreads rank_threads(int threads, const LaunchSession& session) {
  if (threads > 0) return {.threads = threads, .summary = {}};
  return choose_threads(session);
}

std::unique_ptr<Backend> make_rank_backend(const DeviceChoice& device, int threads, bool cpu_bf16) {
  set_host_threads(threads);
  return make_backend(
      device.backend,
      {.threads = threads, .bf16 = cpu_bf16, .device = device.index, .sharers = device.sharers});
}

std::size_t default_activation_bytes(const LaunchSession& session) {
  return available_host_memory() / 2 / static_cast<std::size_t>(session.local_size());
}

void report_pin_failure(ActivationBudget& budget, Monitor& monitor) {
  budget.on_pin_failure = [&budget, &monitor](std::size_t bytes, const std::string& why) {
    monitor.say(
        fmt::format("activations: {} MiB cannot be pinned after {} MiB were, so copies of the rest "
                    "are slower: {}",
                    bytes >> 20, budget.pinned_bytes() >> 20, why));
    monitor.event({{"event", "pin_failed"},
                   {"bytes", bytes},
                   {"pinned_bytes", budget.pinned_bytes()},
                   {"why", why}});
  };
}

void say_tokenizer(const Tokenizer& tokenizer, Monitor& monitor) {
  monitor.say("tokenizer: " + tokenizer.source());
  for (const std::string& warning : tokenizer.warnings()) monitor.say("warning: " + warning);
}

Job::Job(LaunchSession& session, RunConfig config, const Evaluations& evaluations, Access access,
         const std::function<void(Job&)>& before_claim)
    : config_(std::move(config)),
      access_(access),
      world_(count_bytes(session.world(), sent_)),
      ranks_a_node_(session.local_size()) {
  agree(*world_, [&] {
    raise_open_files();
    model_ = std::make_unique<CausalLM>(config_.model);
    // Weights alone need none.
    if (needs_calibration(config_) || !evaluations.empty())
      tokenizer_ = load_tokenizer(config_.model);
    if (tokenizer_ && tokenizer_->vocabulary() > model_->config().vocabulary) {
      throw InputError(fmt::format(
          "{}: the tokenizer has {} pieces, the model's vocabulary only {}", config_.model.string(),
          tokenizer_->vocabulary(), model_->config().vocabulary));
    }
    check_lengths(evaluations);
  });
  device_ = choose_device(config_.device, session.local_size(), *world_);
  const RankThreads threads = rank_threads(config_.threads, session);
  threads_summary_ = threads.summary;
  Facts shared;
  agree(*world_, [&] {
    // Who only reads multiplies nothing, and may do so on any processor.
    backend_ =
        make_rank_backend(device_, threads.threads, config_.cpu_bf16 && access_ == Access::kHolds);
    std::int64_t longest = 1;
    for (const std::string& set : calibration_sets_in_use(config_))
      longest = std::max<std::int64_t>(longest, calibration_set(config_, set).sequence_length);
    for (const Recipe& recipe : config_.recipes) {
      const auto& gradients = recipe.needs.gradients;
      if (gradients) longest = std::max<std::int64_t>(longest, gradients->sequence_length);
    }
    longest = std::max(longest, longest_sequence(evaluations, model_->config()));
    decoder_ = make_decoder_block(model_->config(), longest, *backend_);
    for (const Recipe& recipe : config_.recipes) {
      check_overrides(recipe, *decoder_, blocks());
      make_method(recipe)->check(*decoder_, blocks(), recipe.overrides);
      for (const std::string& format : config_.export_formats) {
        check_exportable(recipe, *decoder_, blocks(), format);
        if (access_ == Access::kHolds && !recipe.overrides.empty())
          check_served(recipe, *decoder_, blocks(), format, config_.export_for);
      }
    }
    shared = facts();
  });
  compare_facts(*world_, shared);
  if (first()) {
    check_unquantized_values(model_->config(), model_->checkpoint(), backend_->activation_type());
    if (!config_.export_formats.empty())
      check_kept_values(*model_, export_options(config_, config_.export_formats.front()));
    for (const Recipe& recipe : config_.recipes) {
      for (const std::string& format : config_.export_formats)
        check_model_exportable(*model_, recipe, format);
    }
  }

  text_threads_ = std::make_unique<ThreadPool>(first() ? threads.threads : 1);
  monitor_ = std::make_unique<JobMonitor>(*world_, nullptr, config_.stall_seconds,
                                          config_.time_limit_minutes, config_.silence_seconds);
  if (before_claim) check_unclaimed(before_claim);
  settle();
  const std::string agreed = describe_agreement(*world_, shared);
  const std::size_t budget = config_.activation_memory_gib > 0
                                 ? static_cast<std::size_t>(config_.activation_memory_gib * 0x1p30)
                                 : default_activation_bytes(session);
  budget_ = std::make_unique<ActivationBudget>(
      budget, scratch_folder(config_), backend_->is_host_memory() ? nullptr : backend_.get());
  saved_activation_bytes_ = config_.saved_activation_gib > 0
                                ? static_cast<std::size_t>(config_.saved_activation_gib * 0x1p30)
                                : backend_->available_bytes() / 4;
  journal_ = std::make_unique<Journal>(config_.run, world_->rank());
  if (access_ == Access::kHolds) monitor_->write_to(journal_.get());
  if (first()) {
    if (world_->size() > 1) monitor_->say(agreed);
    if (tokenizer_) say_tokenizer(*tokenizer_, *monitor_);
    if (!model_->unread().empty()) {
      monitor_->say(config_.model.string() +
                    ": not read and not exported, since config.json has no place for them: " +
                    in_quotes(model_->unread()));
      monitor_->event({{"event", "unread_tensors"}, {"tensors", model_->unread()}});
    }
  }
  report_pin_failure(*budget_, *monitor_);
  store_->on_damage = [this](const std::string& key, const std::string& why) {
    report_damage(key, why);
  };
  for (const auto& [file, why] : damaged_) report_damage(file, why);
  model_identity_ = std::make_unique<ModelIdentity>(*model_, config_.run, *world_, *monitor_,
                                                    access_ == Access::kHolds);
}

Job::~Job() { set_write_guard({}); }

// A folder that cannot be made is refused first, and one that was made for a start that is refused goes again.
void Job::check_unclaimed(const std::function<void(Job&)>& check) {
  const bool made =
      first() && access_ == Access::kHolds && std::filesystem::create_directories(config_.run);
  try {
    check(*this);
  } catch (...) {
    std::error_code ignored;
    if (made) std::filesystem::remove(config_.run, ignored);
    throw;
  }
}

// What the run is of: rank 0 looks, all ranks know.
void Job::settle() {
  nlohmann::json view;
  if (first() && access_ == Access::kReads) {
    const RunInputs inputs = compare_with_run(config_, read_inputs(config_)).inputs;
    view = {to_json(inputs), ""};
  } else if (first()) {
    std::filesystem::create_directories(config_.run);
    lease_ =
        std::make_unique<Lease>(config_.run, LeaseOptions{.tick = [this] { monitor_->tick(); }});
    guard_writes(config_.run, lease_->token());
    Hdf5Store(config_.run).remove_unfinished(record_folders());
    const RunInputs inputs = read_inputs(config_);
    check_records_without_identity(config_, inputs);
    Settled settled = settle_config(config_, inputs);
    damaged_ = std::move(settled.damaged);
    const std::string torn = repair_journal(config_.run);
    if (!torn.empty()) damaged_.push_back({"journal.jsonl", torn});
    view = {to_json(settled.inputs), lease_->token()};
  }
  view = nlohmann::json::parse(share(view.dump()));
  inputs_ = inputs_from_json(view[0]);
  if (access_ == Access::kHolds) {
    const std::string token = view[1].get<std::string>();
    agree(*world_, [&] { await_lease(config_.run, token, 30, [this] { monitor_->tick(); }); });
    if (!first()) guard_writes(config_.run, token);
  }
  store_ = std::make_unique<Hdf5Store>(config_.run);
  set_identities(*store_, config_, inputs_);
}

Facts Job::facts() const {
  std::string settings;
  for (const auto& [key, value] : result_keys(config_)) settings += key + " " + value + "\n";
  std::uintmax_t bytes = 0;
  for (const TensorFile* file : model_->checkpoint().files()) bytes += file->facts().bytes;
  Facts facts = {
      {"program", build_description()},
      {"messages by", message_libraries()},
      {"settings", xxh3_hex(settings).substr(0, 8)},
      {"model", fmt::format("{} with {}, {} bytes", model_fingerprint(config_.model).substr(0, 8),
                            tokenizer_content(config_.model).substr(0, 8), bytes)}};
  // With it the ranks may compute differently, as the records and the report then say.
  if (!config_.allow_other_device) facts["device"] = backend_->computes_as();
  return facts;
}

void Job::check_lengths(const Evaluations& evaluations) const {
  const auto check = [&](const std::string& key, std::int64_t tokens) {
    if (tokens > model_->config().max_positions) {
      throw InputError(fmt::format("{}: {} tokens, but the model has only {} positions", key,
                                   tokens, model_->config().max_positions));
    }
  };
  for (const std::string& name : calibration_sets_in_use(config_)) {
    const SampleOptions& set = calibration_set(config_, name);
    check(set.keys + ".sequence_length", set.sequence_length);
  }
  for (const Recipe& recipe : config_.recipes) {
    if (!recipe.needs.gradients) continue;
    check("recipe " + recipe.name + ": gradients.sequence_length",
          recipe.needs.gradients->sequence_length);
  }
  for (const PerplexityTask& task : evaluations.perplexity)
    check("evaluate.perplexity window of " + task.name + " (`window`; of `evaluate`: --window)",
          task.window);
}

void Job::report_damage(const std::string& what, const std::string& why) {
  monitor_->say(
      what + " is damaged (" + why +
      (access_ == Access::kHolds ? "): it is removed, and `roundhouse run` makes it again" : ")"));
  monitor_->event({{"event", "damaged"}, {"record", what}, {"why", why}});
}

const Recipe& Job::recipe(const std::string& name) const {
  const auto found = std::ranges::find(config_.recipes, name, &Recipe::name);
  if (found != config_.recipes.end()) return *found;
  std::string names;
  for (const std::string& each : recipe_names()) names += (names.empty() ? "" : ", ") + each;
  throw InputError("no recipe " + in_quotes(name) + " in " + config_.run.string() + " (it has " +
                   names + ")");
}

std::vector<std::string> Job::recipe_names() const {
  std::vector<std::string> names;
  for (const Recipe& recipe : config_.recipes) names.push_back(recipe.name);
  return names;
}

void Job::check_content(Communicator& group, const std::vector<std::string>& records) {
  monitor_->phase("reading finished blocks");
  const auto tick = [this] { monitor_->tick(); };
  const int damaged = access_ == Access::kHolds ? remove_damaged(records, *store_, group, tick)
                                                : count_damaged(records, *store_, group, tick);
  if (damaged == 0) return;
  if (access_ == Access::kReads) {
    throw Error(fmt::format("{}: damaged blocks: {}; `roundhouse run` makes them again",
                            config_.run.string(), damaged));
  }
  throw DamagedRecords(fmt::format(
      "{}: damaged blocks were found and removed: {}; `roundhouse run` makes them again",
      config_.run.string(), damaged));
}

bool Job::stop_requested(Communicator& group) {
  return group.all_reduce_max(monitor_->stop_requested() ? 1 : 0) != 0;
}

std::string Job::share(std::string text) { return roundhouse::share(*world_, std::move(text)); }

bool needs_calibration(const RunConfig& config) {
  return std::ranges::any_of(config.recipes,
                             [](const Recipe& recipe) { return recipe.needs.calibration(); });
}

std::string gradient_windows_key(const Needs::Gradients& gradients) {
  return fmt::format("gradients/windows-{}x{}", gradients.samples, gradients.sequence_length);
}

std::vector<std::string> complete_recipes(Job& job) {
  std::vector<std::string> complete;
  std::vector<ContentsByTensor> made_of;
  for (const Recipe& recipe : job.config().recipes) {
    RecipeState state = inspect_recipe(recipe, recipe.units(job.blocks()), 0, job.store(),
                                       job.world(), [&] { job.monitor().tick(); });
    if (state.missing() == 0) complete.push_back(recipe.name);
    made_of.push_back(std::move(state.made_of));
  }
  job.model_identity().settle(made_of);
  return complete;
}

std::vector<std::string> complete_recipes_said(Job& job) {
  const std::vector<std::string> complete = complete_recipes(job);
  for (const Recipe& recipe : job.config().recipes) {
    if (!job.first() || std::ranges::find(complete, recipe.name) != complete.end()) continue;
    job.monitor().say(recipe.name +
                      " is not complete and is left out: `roundhouse run` goes on with it");
  }
  return complete;
}

}  // namespace roundhouse
