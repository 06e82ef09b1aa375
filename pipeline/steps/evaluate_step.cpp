#include "pipeline/steps/evaluate_step.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <initializer_list>
#include <span>
#include <utility>

#include <fmt/format.h>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/json_number.h"
#include "base/packed_file.h"
#include "comm/together.h"
#include "pipeline/plan/device_rates.h"
#include "pipeline/plan/evaluation_cost.h"
#include "pipeline/run/results.h"
#include "pipeline/run/run_files.h"
#include "pipeline/run/sealed_json.h"
#include "pipeline/run/whole_records.h"
#include "pipeline/start/preflight.h"
#include "stages/store/quantized_weights.h"

namespace roundhouse {
namespace {

using Json = nlohmann::json;
using Clock = std::chrono::steady_clock;

// What a figure depends on besides the weights.
Json settings_of(const PerplexityTask& task, const RunInputs& inputs) {
  return {{"window", task.window},
          {"limit", task.limit},
          {"rows", task.rows},
          {"text", xxh3_hex_of_content(task.text)},
          {"tokenizer", inputs.tokenizer}};
}

Json settings_of(const TaskOptions& task, Protocol protocol, const RunInputs& inputs) {
  const TaskTemplate made_by = read_task_template(task.task);
  std::string hashes;
  for (const std::filesystem::path& file : task_sources(made_by, task.file)) {
    // Packed or not it is the same text.
    const bool packed = file.extension() == ".gz" || file.extension() == ".zst";
    hashes +=
        (packed ? file.stem() : file.filename()).string() + " " + xxh3_hex_of_content(file) + "\n";
  }
  return {{"template", made_by.identity},
          {"protocol", name_of(protocol)},
          {"limit", task.limit},
          {"documents", xxh3_hex(hashes)},
          {"tokenizer", inputs.tokenizer}};
}

Json to_json(const DivergenceFigures& figures) {
  return {{"mean", number_or_null(figures.mean)},
          {"percentile_99", number_or_null(figures.percentile_99)},
          {"largest", number_or_null(figures.largest)},
          {"same_top", number_or_null(figures.same_top)},
          {"rows", figures.rows}};
}

// What scoring needs to know of documents, for the other ranks.
Json facts_of(const Evaluation& evaluation) {
  Json documents = Json::array();
  for (const TaskDocument& each : evaluation.documents)
    documents.push_back({each.gold, each.characters, each.subject, each.words, each.bytes});
  const TaskScoring& scoring = evaluation.scoring;
  return Json::array(
      {documents,
       evaluation.results,
       {static_cast<int>(scoring.metric), scoring.has_subjects, scoring.mean_of_subjects}});
}

void set_facts(Evaluation& evaluation, const Json& facts) {
  evaluation.documents.clear();
  for (const Json& each : facts[0]) {
    TaskDocument document;
    document.gold = each[0].get<std::size_t>();
    document.characters = each[1].get<std::vector<std::size_t>>();
    document.subject = each[2].get<std::string>();
    document.words = each[3].get<std::size_t>();
    document.bytes = each[4].get<std::size_t>();
    evaluation.documents.push_back(std::move(document));
  }
  evaluation.results = facts[1].get<std::vector<std::vector<std::size_t>>>();
  evaluation.scoring = {.metric = static_cast<TaskMetric>(facts[2][0].get<int>()),
                        .has_subjects = facts[2][1].get<bool>(),
                        .mean_of_subjects = facts[2][2].get<bool>()};
  evaluation.greedy = evaluation.scoring.wants_greedy() ? Greedy::kYes : Greedy::kNo;
}

// The figures of one recipe, or an empty object: there are none, or not of these weights.
Json results_of_these_weights(Job& job, const std::string& name, const std::string& identity) {
  const std::string key = results_key(name);
  const SealedJson sealed = read_results(job.config().run, name);
  if (!sealed.object) {
    if (sealed.why != "missing") job.report_damage(key, sealed.why);
    return Json::object();
  }
  const bool ours = sealed.object->value("identity", "") == identity &&
                    sealed.object->value("model", "") == job.model_identity().content();
  return ours ? *sealed.object : Json::object();
}

// Is this figure among the results, and are a task's answers what was written?
bool is_measured(Job& job, const std::string& recipe, const std::string& name, const Json& settings,
                 const Json& results) {
  if (results.value("/settings"_json_pointer / name, Json()) != settings) return false;
  const std::string hash = results.value("/answers"_json_pointer / name, "");
  if (hash.empty()) return true;
  const std::filesystem::path file = answers_path(job.config().run, recipe, name);
  const bool there = bytes_of_file(file).has_value();
  if (there && xxh3_hex_of_file(file) == hash) return true;
  job.report_damage(file.lexically_relative(job.config().run).string(),
                    there ? "it is not what was written" : "missing");
  return false;
}

// What the name stood for before: a text with other windows, or a task where there is a text now.
void forget(Json& results, const std::string& name, std::initializer_list<const char*> kinds) {
  for (const char* kind : kinds) {
    if (results.contains(kind)) results[kind].erase(name);
  }
}

// Puts a figure among the results of a recipe: the answers first, so that results never speak of what is not there.
void write_figures(Job& job, const std::string& recipe, const Evaluation& evaluation,
                   const EvaluationFigures& figures, Json& results) {
  const std::string& name = evaluation.name;
  if (evaluation.is_task()) {
    std::string lines;
    for (const auto& answer : figures.task.answers) lines += answer.dump() + "\n";
    write_text_atomically(answers_path(job.config().run, recipe, name), lines);
    results["answers"][name] = xxh3_hex(lines);
    results["tasks"][name] = figures.task.figures;
    forget(results, name, {"perplexity", "windows", "kl"});
  } else {
    results["perplexity"][name] = number_or_null(figures.perplexity.perplexity);
    results["windows"][name] = figures.perplexity.windows;
    forget(results, name, {"kl", "tasks", "answers"});
    if (figures.divergence.rows > 0) results["kl"][name] = to_json(figures.divergence);
  }
  results["computed_by"][name] = job.backend().computes_as();
  write_sealed_json(results_path(job.config().run, recipe), results_key(recipe), results);
  std::error_code ignored;  // a file of answers that nothing speaks of is only left over
  if (!evaluation.is_task())
    std::filesystem::remove(answers_path(job.config().run, recipe, name), ignored);
}

EvaluationFigures figures_of(const Evaluation& evaluation, const Comparison& comparison) {
  const std::vector<LogLikelihood>& log_likelihoods = comparison.log_likelihoods;
  EvaluationFigures figures;
  figures.divergence = figures_of(comparison.rows);
  if (!evaluation.is_task()) {
    figures.perplexity = perplexity_of(log_likelihoods, evaluation.window);
    const bool finite = std::isfinite(figures.perplexity.perplexity);
    figures.summary = finite ? fmt::format("{:.4f}", figures.perplexity.perplexity) : "not finite";
    figures.summary += fmt::format(" ({} windows)", figures.perplexity.windows);
    if (figures.divergence.rows > 0 && std::isfinite(figures.divergence.mean)) {
      figures.summary += fmt::format(", KL {:.2e}, same top token {:.2f} %",
                                     figures.divergence.mean, 100 * figures.divergence.same_top);
    }
    return figures;
  }
  figures.task =
      score_task(evaluation.scoring, evaluation.documents, evaluation.results, log_likelihoods);
  for (const char* key : {"acc", "acc_norm", "perplexity", "word_perplexity", "bits_per_byte"}) {
    if (!figures.task.figures.contains(key)) continue;
    const auto& value = figures.task.figures[key];
    figures.summary +=
        fmt::format("{} {}, ", key,
                    value.is_null() ? "not finite" : fmt::format("{:.4f}", value.get<double>()));
  }
  figures.summary += fmt::format("{} documents", evaluation.documents.size());
  return figures;
}

Json event_of(const std::string& recipe, const Evaluation& evaluation,
              const EvaluationFigures& figures) {
  Json event = {{"event", evaluation.is_task() ? "task" : "perplexity"},
                {"recipe", recipe},
                {"name", evaluation.name}};
  if (evaluation.is_task()) {
    event["figures"] = figures.task.figures;
  } else {
    event["windows"] = figures.perplexity.windows;
    event["perplexity"] = number_or_null(figures.perplexity.perplexity);
    if (figures.divergence.rows > 0) event["kl"] = to_json(figures.divergence);
  }
  return event;
}

}  // namespace

std::int64_t longest_sequence(const Evaluations& evaluations, const ModelConfig& model) {
  std::int64_t longest = evaluations.tasks.empty() ? 0 : model.max_positions;
  for (const PerplexityTask& task : evaluations.perplexity)
    longest = std::max<std::int64_t>(longest, task.window);
  return longest;
}

double Evaluation::tokens() const {
  double tokens = 0;
  for (const ScoredSequence& sequence : sequences)
    tokens += static_cast<double>(sequence.ids.size());
  return tokens;
}

BlockSource original_weights(const CausalLM& model, const DecoderBlock& decoder, Backend& backend) {
  return [&](int block) { return decoder.load(model.checkpoint(), block, backend); };
}

std::vector<Evaluation> read_evaluations(const Evaluations& evaluations, const ModelConfig& model,
                                         const Tokenizer& tokenizer, ThreadPool& threads,
                                         Communicator& world, JobMonitor& monitor) {
  const auto tick = [&] { monitor.tick(); };
  const bool first = world.rank() == 0;
  std::vector<Evaluation> all;
  for (const PerplexityTask& task : evaluations.perplexity) {
    Evaluation& evaluation = all.emplace_back();
    evaluation.name = task.name;
    evaluation.window = task.window;
    if (first) {
      monitor.phase("tokens of " + task.text.string());
      evaluation.sequences =
          sequences_of(evaluation_windows(task, task.limit, tokenizer, threads, tick));
    }
  }
  const RequestEncoder encoder(tokenizer, model, evaluations.protocol);
  for (const TaskOptions& task : evaluations.tasks) {
    Evaluation& evaluation = all.emplace_back();
    evaluation.name = task.name;
    if (first) {
      monitor.phase("tokens of " + task.file.string());
      const TaskTemplate made_by = read_task_template(task.task);
      evaluation.scoring = scoring_of(made_by, evaluations.protocol);
      evaluation.documents = read_task(made_by, task.file, task.limit);
      TaskSequences encoded = encoder.encode(evaluation.documents, tick);
      evaluation.sequences = std::move(encoded.sequences);
      evaluation.results = std::move(encoded.results);
      if (encoded.cut > 0) {
        monitor.say(
            fmt::format("warning: {}: {} of {} documents are longer than the {} tokens that the "
                        "model reads: the rest of their beginning is left out",
                        task.name, encoded.cut, evaluation.documents.size(), model.max_positions));
        monitor.event({{"event", "cut"}, {"task", task.name}, {"documents", encoded.cut}});
      }
    }
  }
  const Watchdog::Waiting waiting(&monitor.watchdog());
  for (Evaluation& evaluation : all) {
    share_sequences(evaluation.sequences, world);
    if (!evaluation.is_task()) continue;
    const std::string facts = share(world, first ? facts_of(evaluation).dump() : std::string());
    set_facts(evaluation, Json::parse(facts));
  }
  return all;
}

WalkShape choose_walk(const std::vector<const Evaluation*>& evaluations,
                      const std::vector<const Evaluation*>& compared, const CausalLM& model,
                      const DecoderBlock& decoder, const Backend& backend, int ranks_a_node,
                      const ActivationBudget& budget, Communicator& group) {
  const auto least = [&](std::size_t bytes) {
    return static_cast<double>(group.all_reduce_min(static_cast<std::int64_t>(bytes)));
  };
  const double activations = least(budget.bytes()), device = least(backend.available_bytes());
  Json shape;
  if (group.rank() == 0) {
    EvaluationSize size;
    size.works = static_cast<int>(evaluations.size());
    std::int64_t longest = 0;
    for (const Evaluation* evaluation : evaluations) {
      size.tokens += evaluation->tokens();
      for (const ScoredSequence& sequence : evaluation->sequences)
        longest = std::max<std::int64_t>(longest, std::ssize(sequence.ids));
    }
    for (const Evaluation* evaluation : compared) size.compared += evaluation->tokens();
    size.length = static_cast<int>(longest);
    DeviceRates rates = rates_like(backend);
    rates.ranks_a_node = ranks_a_node;
    const WalkShape best = best_evaluation({.model = model.config(),
                                            .decoder = decoder,
                                            .rates = rates,
                                            .ranks = group.size(),
                                            .activation_bytes = activations,
                                            .device_bytes = device},
                                           size)
                               .shape;
    shape = {best.rings, best.blocks_at_once};
  }
  shape = Json::parse(share(group, shape.dump()));
  return {.rings = shape[0].get<int>(), .blocks_at_once = shape[1].get<int>()};
}

std::optional<WalkFacts> measure(
    const std::vector<const Evaluation*>& evaluations,
    const std::vector<const Evaluation*>& compared, const ModelWalk& walk,
    const std::function<void(std::size_t first, std::vector<EvaluationFigures> figures)>& take) {
  std::vector<EvaluationWork> works;
  for (const Evaluation* evaluation : evaluations) {
    works.push_back({.sequences = evaluation->sequences,
                     .greedy = evaluation->greedy,
                     .compared = std::ranges::find(compared, evaluation) != compared.end()});
  }
  return evaluate_model(walk, works, [&](std::size_t first, std::vector<Comparison> results) {
    std::vector<EvaluationFigures> figures;
    for (std::size_t i = 0; i < results.size(); ++i)
      figures.push_back(figures_of(*evaluations[first + i], results[i]));
    take(first, std::move(figures));
  });
}

void RunEvaluations::read(Job& job) {
  if (read_.size() == size()) return;
  // Of the files as they are when they are read, on the one rank that reads them.
  const Json settings = job.first() ? Json(all_settings(job)) : Json();
  read_ = read_evaluations(what_, job.model().config(), job.tokenizer(), job.text_threads(),
                           job.world(), job.monitor());
  settings_ = Json::parse(job.share(settings.dump())).get<std::vector<Json>>();
}

const std::string& RunEvaluations::name(std::size_t index) const {
  const std::size_t texts = what_.perplexity.size();
  return index < texts ? what_.perplexity[index].name : what_.tasks[index - texts].name;
}

std::vector<Json> RunEvaluations::all_settings(Job& job) const {
  std::vector<Json> settings;
  for (const PerplexityTask& each : what_.perplexity)
    settings.push_back(settings_of(each, job.inputs()));
  for (const TaskOptions& each : what_.tasks)
    settings.push_back(settings_of(each, what_.protocol, job.inputs()));
  return settings;
}

bool RunEvaluations::compares(std::size_t index, const std::string& recipe) const {
  return what_.kl && index < what_.perplexity.size() && recipe != kOriginal;
}

Json RunEvaluations::settings(Job& job, std::size_t index, const std::string& recipe) {
  if (settings_.empty()) settings_ = all_settings(job);
  Json settings = settings_[index];
  if (compares(index, recipe)) settings["kl"] = true;
  return settings;
}

namespace {

// What of a recipe is not measured yet, and what there is. The look of the group's rank 0 decides, so that all its ranks do the same.
struct Missing {
  std::vector<std::size_t> indices;
  Json results;  // on rank 0
};
Missing look_for_missing(Job& job, Communicator& group, const std::string& name,
                         const std::string& identity, RunEvaluations& evaluations) {
  Missing missing;
  if (group.rank() == 0) {
    missing.results = results_of_these_weights(job, name, identity);
    for (std::size_t t = 0; t < evaluations.size(); ++t) {
      const Json settings = evaluations.settings(job, t, name);
      if (!is_measured(job, name, evaluations.name(t), settings, missing.results))
        missing.indices.push_back(t);
    }
  }
  missing.indices =
      Json::parse(share(group, Json(missing.indices).dump())).get<std::vector<std::size_t>>();
  return missing;
}

// Seconds of a walk, for the events of what it has measured: each has the share of its tokens, one after the other.
class WalkClock {
 public:
  struct Share {
    double seconds, told_after;  // from its end until now
  };
  std::vector<Share> shares(const std::vector<double>& tokens) {
    const auto now = Clock::now();
    const double passed = std::chrono::duration<double>(now - last_).count();
    last_ = now;
    double all = 0, left = passed;
    for (const double each : tokens) all += each;
    std::vector<Share> shares;
    for (const double each : tokens) {
      const double seconds =
          passed * (all > 0 ? each / all : 1.0 / static_cast<double>(tokens.size()));
      left -= seconds;
      shares.push_back({seconds, std::max(0.0, left)});
    }
    return shares;
  }

 private:
  Clock::time_point last_ = Clock::now();
};

// To the journal, from the group's rank 0: {"event": "walk", "recipe", "seconds", "ranks", "rings", "blocks_loaded": by all ranks,
// "transfers": what ranks have sent to each other: [[from, to, batches, bytes, begin, end], ..], ranks of the group, seconds before the
// event}. Collective.
void tell_of_walk(Job& job, Communicator& group, const std::string& recipe, const ModelWalk& walk,
                  const WalkFacts& facts, double seconds) {
  const double now = std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
  Json mine = Json::array();
  for (const auto& [to, sent] : facts.sent)
    mine.push_back({group.rank(), to, sent.messages, sent.bytes, now - sent.begin, now - sent.end});
  const std::string text = mine.dump();
  Json transfers = Json::array();
  for (const auto& bytes : group.gather(std::as_bytes(std::span(text)), 0)) {
    const char* begin = reinterpret_cast<const char*>(bytes.data());
    for (const Json& each : Json::parse(begin, begin + bytes.size())) transfers.push_back(each);
  }
  const std::int64_t loaded = group.all_reduce_sum(facts.blocks_loaded);
  if (group.rank() != 0) return;
  job.monitor().event({{"event", "walk"},
                       {"recipe", recipe},
                       {"seconds", seconds},
                       {"ranks", group.size()},
                       {"rings", walk.shape.rings},
                       {"blocks_loaded", loaded},
                       {"transfers", transfers}});
}

bool evaluate_recipe(Job& job, Communicator& group, const std::string& name,
                     RunEvaluations& evaluations) {
  const std::string identity = name == kOriginal
                                   ? job.inputs().model
                                   : recipe_identity(job.config(), job.inputs(), job.recipe(name));
  Missing missing = look_for_missing(job, group, name, identity, evaluations);
  if (missing.indices.empty()) return true;
  if (job.stop_requested(group)) return false;

  if (name != kOriginal)
    job.check_content(group, block_keys(name, job.recipe(name).units(job.blocks())));
  if (group.size() == job.world().size()) evaluations.read(job);
  job.monitor().phase("evaluation of " + name);
  std::vector<const Evaluation*> wanted, compared;
  for (const std::size_t t : missing.indices) {
    wanted.push_back(&evaluations.at(t));
    if (evaluations.compares(t, name)) compared.push_back(&evaluations.at(t));
  }
  const BlockSource original = original_weights(job.model(), job.decoder(), job.backend());
  BlockSource weights = original;
  OuterSource outer;
  if (name != kOriginal) {
    weights = [&](int block) {
      return load_quantized_weights(job.model(), job.decoder(), job.store(), name, block,
                                    job.backend());
    };
    if (!job.recipe(name).include.empty()) {
      outer = [&] {
        return load_outer_linears(*job.decoder().outer(job.recipe(name).include), job.store(), name,
                                  job.blocks());
      };
    }
  }
  const ModelWalk walk{.model = job.model(),
                       .decoder = job.decoder(),
                       .reference = compared.empty() ? BlockSource() : original,
                       .weights = weights,
                       .backend = job.backend(),
                       .group = group,
                       .budget = job.budget(),
                       .monitor = job.monitor(),
                       .shape = choose_walk(wanted, compared, job.model(), job.decoder(),
                                            job.backend(), job.ranks_a_node(), job.budget(), group),
                       .outer = outer};
  const auto start = Clock::now();
  WalkClock clock;
  const auto facts = measure(
      wanted, compared, walk, [&](std::size_t first, std::vector<EvaluationFigures> figures) {
        job.model_identity().join(group);
        if (group.rank() != 0) return;
        std::vector<double> tokens;
        for (std::size_t i = 0; i < figures.size(); ++i) {
          const std::size_t t = missing.indices[first + i];
          tokens.push_back(evaluations.at(t).tokens() * (evaluations.compares(t, name) ? 2 : 1));
        }
        const std::vector<WalkClock::Share> shares = clock.shares(tokens);
        missing.results["recipe"] = name;
        missing.results["identity"] = identity;
        missing.results["model"] = job.model_identity().content();
        for (std::size_t i = 0; i < figures.size(); ++i) {
          const std::size_t t = missing.indices[first + i];
          const Evaluation& evaluation = evaluations.at(t);
          missing.results["settings"][evaluation.name] = evaluations.settings(job, t, name);
          write_figures(job, name, evaluation, figures[i], missing.results);
          Json event = event_of(name, evaluation, figures[i]);
          event["seconds"] = shares[i].seconds;
          event["told_after"] = shares[i].told_after;
          event["ranks"] = group.size();
          event["tokens_per_second"] = evaluation.tokens() / shares[i].seconds;
          job.monitor().event(event);
          job.monitor().say((evaluation.is_task() ? "" : "perplexity of ") + name + " on " +
                            evaluation.name + ": " + figures[i].summary);
        }
      });
  if (!facts) return false;
  job.model_identity().join(group);
  const std::chrono::duration<double> took = Clock::now() - start;
  tell_of_walk(job, group, name, walk, *facts, took.count());
  return true;
}

}  // namespace

bool evaluate_recipes(Job& job, Communicator& group, const std::vector<std::string>& recipes,
                      RunEvaluations& evaluations) {
  for (const std::string& name : recipes) {
    if (!evaluate_recipe(job, group, name, evaluations)) return false;
  }
  return true;
}

}  // namespace roundhouse
