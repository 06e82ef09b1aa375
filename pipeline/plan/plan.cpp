#include "pipeline/plan/plan.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <functional>
#include <optional>
#include <string_view>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/error.h"
#include "base/quote.h"
#include "model/synthetic.h"
#include "pipeline/plan/cost_model.h"
#include "pipeline/plan/simulation.h"
#include "pipeline/run/hdf5_store.h"
#include "pipeline/schedule/planner.h"
#include "pipeline/schedule/recipe_failure.h"
#include "stages/store/run_store.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Kind = Step::Kind;

constexpr int kColumns = 60;     // of the picture
constexpr double kSafety = 1.5;  // of the time limit
constexpr double kMostOfMemory = 0.95;

MeshShape mesh_of(const PlanRequest& request, int ranks) {
  const RunConfig& config = request.config;
  return choose_mesh(config.pipeline_ranks, config.data_ranks, ranks, most_shards(config),
                     static_cast<int>(request.model.blocks));
}

struct Outcome {
  CostModel costs;
  std::vector<std::vector<Step>> steps;
  Simulation simulation;
};

Outcome simulate_job(const PlanRequest& request, int ranks, MeshShape mesh,
                     const std::vector<RecipeState>& states) {
  CostModel costs({.config = request.config,
                   .model = request.model,
                   .shape = request.shape,
                   .rates = request.rates,
                   .ranks = ranks,
                   .mesh = mesh});
  auto steps =
      plan_steps(request.config.recipes, states, mesh, static_cast<int>(request.model.blocks));
  Simulation simulation = simulate(steps, costs);
  return {std::move(costs), std::move(steps), std::move(simulation)};
}

// The fastest of all meshes of so many ranks.
MeshShape best_mesh(const PlanRequest& request, int ranks, const std::vector<RecipeState>& states,
                    double& seconds) {
  MeshShape best{1, ranks};
  seconds = -1;
  for (int pipeline = 1; pipeline <= std::min<int>(ranks, static_cast<int>(request.model.blocks));
       ++pipeline) {
    if (ranks % pipeline != 0) continue;
    const MeshShape mesh{pipeline, ranks / pipeline};
    const double each = simulate_job(request, ranks, mesh, states).simulation.seconds;
    if (seconds < 0 || each < seconds) {
      seconds = each;
      best = mesh;
    }
  }
  return best;
}

// How busy a team's ranks are in each of `columns` equal parts of the job, 0 to 1.
std::vector<double> busy_over_time(const std::vector<Interval>& intervals, double seconds) {
  std::vector<double> busy(kColumns);
  const double width = seconds / kColumns;
  for (const Interval& interval : intervals) {
    const double length = interval.end - interval.begin;
    const int first = std::clamp(static_cast<int>(interval.begin / width), 0, kColumns - 1);
    const int last = std::clamp(static_cast<int>(interval.end / width), 0, kColumns - 1);
    for (int column = first; column <= last && length > 0; ++column) {
      const double overlap =
          std::min(interval.end, (column + 1) * width) - std::max(interval.begin, column * width);
      busy[static_cast<std::size_t>(column)] +=
          std::max(0.0, overlap) / width * interval.work / length;
    }
  }
  return busy;
}

json wire_of(const Outcome& of) {
  double sums = 0, activations = 0, gradients = 0;
  for (const auto& steps : of.steps) {
    for (const Step& step : steps) {
      if (step.kind == Kind::kMake) sums += of.costs.unit_traffic(step.recipe).sent;
      if (step.kind == Kind::kBackward) gradients += of.costs.gradient_traffic(step.recipe).sent;
      if (step.kind == Kind::kHandOver) activations += of.costs.stream_bytes(step.recipe);
    }
  }
  // Forward and back over each border between stages that a walk passes.
  for (std::size_t s = 0; s + 1 < of.steps.size(); ++s) {
    for (const Step& step : of.steps[s]) {
      const bool last =
          step.block + 1 == parts_of_rank(static_cast<int>(of.costs.job().model.blocks),
                                          static_cast<int>(s), of.costs.job().mesh.pipeline)
                                .end;
      if (last && (step.kind == Kind::kForward || step.kind == Kind::kBackward))
        gradients += of.costs.gradient_stream_bytes(step.recipe);
    }
  }
  return {{"within_teams", sums},
          {"between_stages", activations},
          {"gradients", gradients},
          {"all", sums + activations + gradients}};
}

json files_of(const Outcome& of, const RunConfig& config) {
  const auto blocks = static_cast<double>(of.costs.job().model.blocks);
  const double nodes_of_team =
      std::ceil(static_cast<double>(of.costs.team()) / of.costs.job().rates.ranks_a_node);
  double read = 0;
  for (const auto& steps : of.steps) {
    for (const Step& step : steps) {
      const bool weights = (step.kind == Kind::kMake &&
                            !config.recipes[step.recipe].needs.makes_blocks_of_gradients()) ||
                           step.kind == Kind::kForward || step.kind == Kind::kBackward;
      if (weights) read += of.costs.block_bytes() * nodes_of_team;
      if (step.kind == Kind::kReplay) {
        const Needs& needs = config.recipes[step.recipe].needs;
        read += nodes_of_team * ((needs.quantized_stream ? of.costs.record_bytes(step.recipe) : 0) +
                                 (needs.full_precision_stream ? of.costs.block_bytes() : 0));
      }
      if (step.kind == Kind::kLoad) read += of.costs.stream_bytes(step.recipe);
    }
  }
  for (std::size_t r = 0; r < config.recipes.size(); ++r) {
    read += static_cast<double>(config.export_formats.size()) *
            (blocks * of.costs.record_bytes(r) + of.costs.outside_bytes());
    if (!config.evaluations.empty())
      read += of.costs.nodes() * (blocks * of.costs.record_bytes(r) + of.costs.outside_bytes());
  }
  if (config.evaluate_original && !config.evaluations.empty())
    read += of.costs.nodes() * (blocks * of.costs.block_bytes() + of.costs.outside_bytes());
  const DiskUse disk = of.costs.disk();
  return {
      {"read", read},
      {"written", disk.records + disk.exports + disk.calibration + of.simulation.snapshot_bytes}};
}

// What does not fit, and what would make it fit.
json problems_of(const PlanRequest& request, const Outcome& of) {
  const RunConfig& config = request.config;
  const DeviceRates& rates = request.rates;
  json problems = json::array();
  const auto say = [&](const std::string& what) {
    if (std::ranges::find(problems, json(what)) == problems.end()) problems.push_back(what);
  };
  const double sharers = std::min(of.costs.job().ranks, rates.ranks_a_node);
  const double host = rates.host_bytes / sharers;
  const double budget =
      config.activation_memory_gib > 0 ? config.activation_memory_gib * 0x1p30 : host / 2;
  for (std::size_t r = 0; r < config.recipes.size(); ++r) {
    const MemoryUse memory = of.costs.memory(r);
    const std::string& name = config.recipes[r].name;
    if (!rates.is_host && memory.device > kMostOfMemory * rates.device_bytes) {
      say(fmt::format(
          "{}: {:.1f} GB of device memory, and {} has {:.1f}: {}", name, memory.device / 1e9,
          rates.name, rates.device_bytes / 1e9,
          config.recipes[r].needs.gradients
              ? "set a larger calibration.shards on more ranks, or take a device with more"
              : "set memory.saved_activations_gib lower, or take a device with more"));
    }
    if (memory.activations > budget) {
      const double wanted = std::ceil(memory.activations / 0x1p30 * 1.02);
      const double rest = memory.host - memory.activations;
      const bool fits = wanted * 0x1p30 + rest < kMostOfMemory * host;
      say(fmt::format(
          "{}: {:.1f} GB of activations a rank, and memory.activations_gib {} {:.0f}: {:.1f} GB go "
          "through "
          "files in memory.scratch; {}",
          name, memory.activations / 1e9, config.activation_memory_gib > 0 ? "is" : "is by default",
          budget / 0x1p30, (memory.activations - budget) / 1e9,
          fits ? fmt::format("memory.activations_gib: {:.0f} holds them", wanted)
          : of.costs.team() < most_shards(config)
              ? "more ranks in a team (mesh.data), or fewer calibration.samples, would hold them"
              : "fewer calibration.samples, or fewer ranks a node, would hold them"));
    } else if (memory.host > kMostOfMemory * host) {
      say(fmt::format(
          "{}: {:.1f} GB of host memory a rank, and a node has {:.1f} for each of its {} ranks: "
          "start fewer ranks a node, or set memory.activations_gib lower",
          name, memory.host / 1e9, host / 1e9, sharers));
    }
  }
  std::error_code error;
  fs::path place = fs::absolute(config.run, error);
  while (!error && !fs::exists(place, error) && place.has_relative_path())
    place = place.parent_path();
  const fs::space_info space = fs::space(place, error);
  const double needed = of.costs.disk().peak();
  if (!error && space.capacity > 0 && needed > static_cast<double>(space.available)) {
    say(fmt::format(
        "disk: {:.1f} GB at most, and {} has {:.1f} free: put `run` elsewhere, or export fewer "
        "formats",
        needed / 1e9, place.string(), static_cast<double>(space.available) / 1e9));
  }
  const auto check_length = [&](const std::string& key, std::int64_t tokens) {
    if (tokens > request.model.max_positions)
      say(fmt::format("{}: {} tokens, but the model has only {} positions: set it lower", key,
                      tokens, request.model.max_positions));
  };
  for (const std::string& set : calibration_sets_in_use(config)) {
    const std::string key = set == kDefaultCalibration ? "calibration" : "calibrations." + set;
    check_length(key + ".sequence_length", calibration_set(config, set).sequence_length);
  }
  for (const PerplexityTask& task : config.evaluations.perplexity)
    check_length("evaluate.perplexity window of " + task.name, task.window);
  if (config.time_limit_minutes > 0 && of.simulation.seconds > 60 * config.time_limit_minutes) {
    say(
        fmt::format("limits.minutes: {}, and the job takes {:.0f}: it stops cleanly then and goes "
                    "on when it is "
                    "started again",
                    config.time_limit_minutes, of.simulation.seconds / 60));
  }
  return problems;
}

json hints_of(const PlanRequest& request, const Outcome& of, MeshShape best, double best_seconds) {
  json hints = json::array();
  const MeshShape mesh = of.costs.job().mesh;
  if (best_seconds < 0.97 * of.simulation.seconds &&
      (best.pipeline != mesh.pipeline || best.data != mesh.data)) {
    hints.push_back(fmt::format("mesh: {{pipeline: {}, data: {}}} would take {:.0f} % of this time",
                                best.pipeline, best.data,
                                100 * best_seconds / of.simulation.seconds));
  }
  const int shards = most_shards(request.config);
  if (shards % mesh.data != 0) {
    const int each = (shards + mesh.data - 1) / mesh.data;
    hints.push_back(fmt::format(
        "{} shards on {} ranks of a team keep {:.0f} % of them busy: calibration.shards of a "
        "multiple of {} would keep all busy (and gives other bits)",
        shards, mesh.data, 100.0 * shards / (each * mesh.data), mesh.data));
  }
  for (const Recipe& recipe : request.config.recipes) {
    if (recipe.needs.widest_team == 0 || recipe.needs.widest_team >= mesh.data) continue;
    hints.push_back(fmt::format("{}: {} of the {} ranks of a team have work most of the time",
                                recipe.name, recipe.needs.widest_team, mesh.data));
  }
  return hints;
}

std::string clock(double seconds) {
  if (seconds < 100) return fmt::format("{:.1f} s", seconds);
  if (seconds < 6000) return fmt::format("{:.1f} min", seconds / 60);
  return fmt::format("{:.2f} h", seconds / 3600);
}

std::string size(double bytes) {
  if (bytes < 1e6) return fmt::format("{:.1f} kB", bytes / 1e3);
  if (bytes < 1e9) return fmt::format("{:.1f} MB", bytes / 1e6);
  if (bytes < 1e12) return fmt::format("{:.1f} GB", bytes / 1e9);
  return fmt::format("{:.2f} TB", bytes / 1e12);
}

std::string quoted_for_shell(const std::string& text) {
  constexpr std::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/=+:,";
  if (!text.empty() && text.find_first_not_of(kPlain) == text.npos) return text;
  std::string quoted = "'";
  for (const char c : text) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

std::string batch_line(const PlanRequest& request, const Outcome& of) {
  const DeviceRates& rates = request.rates;
  const int ranks = of.costs.job().ranks;
  const int each = std::min(ranks, rates.ranks_a_node);
  const double minutes = std::ceil((kSafety * of.simulation.seconds / 60 + 10) / 15) * 15;
  const auto whole = static_cast<long>(minutes);
  return fmt::format(
      "CONFIG={} RUN={} sbatch --nodes={} --ntasks-per-node={}{} --time={}:{:02}:00 {}",
      quoted_for_shell(request.config_file), quoted_for_shell(request.config.run.string()),
      of.costs.nodes(), each, rates.is_host ? "" : fmt::format(" --gpus-per-node={}", each),
      whole / 60, whole % 60, rates.is_host ? "slurm/quantize_demo.sh" : "slurm/quantize_70b.sh");
}

// The config with some of its recipes.
RunConfig with_recipes(const RunConfig& config, std::vector<Recipe> recipes) {
  RunConfig other = config;
  other.recipes = std::move(recipes);
  return other;
}

}  // namespace

ModelConfig planned_model(const fs::path& folder, const std::string& like, std::string& name) {
  std::error_code error;
  if (!like.empty()) {
    name = like + " (its shape)";
    return shape_like(like);
  }
  if (fs::exists(folder / "config.json", error)) {
    name = folder.string();
    return read_model_config(folder);
  }
  const fs::path last = folder.has_filename() ? folder.filename() : folder.parent_path().filename();
  std::string lower = last.string();
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  std::string best;
  for (const std::string& shape : known_shapes()) {
    if (lower.find(shape) != lower.npos && shape.size() > best.size()) best = shape;
  }
  if (best.empty()) {
    throw InputError(
        "there is no file " + in_quotes((folder / "config.json").string()) +
        ", and the folder is not called like a published model; --like NAME plans for one: " +
        fmt::format("{}", fmt::join(known_shapes(), ", ")));
  }
  name = best + " (its shape, since there is no " + (folder / "config.json").string() + ")";
  return shape_like(best);
}

std::vector<RecipeState> states_on_disk(const RunConfig& config, int blocks) {
  std::vector<RecipeState> states = fresh_states(config.recipes, blocks);
  const auto there = [&](const std::string& key) {
    std::error_code error;
    return fs::exists(config.run / (key + ".h5"), error);
  };
  if (!fs::is_directory(config.run)) return states;
  Hdf5Store store(config.run);
  for (std::size_t r = 0; r < states.size(); ++r) {
    const Recipe& recipe = config.recipes[r];
    states[r].failure = find_failure(recipe.name, store);
    for (int block = 0; block < blocks; ++block)
      states[r].done[static_cast<std::size_t>(block)] = there(block_key(recipe.name, block));
    if (recipe.needs.decision && there(decision_key(recipe.name)))
      states[r].decision = json::object();
    if (!states[r].to_do() || !recipe.needs.streams()) continue;
    for (int place = states[r].first_missing(); place > 0 && states[r].snapshot == 0; --place) {
      bool whole = true;
      for (int shard = 0; whole && shard < calibration_set(config, recipe.calibration).shards;
           ++shard) {
        whole =
            (!recipe.needs.quantized_stream || there(snapshot_key(recipe.name, place, shard))) &&
            (!recipe.needs.full_precision_stream ||
             there(shared_snapshot_key(recipe.calibration, place, shard)));
      }
      if (whole) states[r].snapshot = place;
    }
  }
  return states;
}

json make_plan(const PlanRequest& request, int ranks, std::vector<RecipeState> states) {
  const RunConfig& config = request.config;
  const MeshShape mesh = mesh_of(request, ranks);
  const Outcome of = simulate_job(request, ranks, mesh, states);
  double best_seconds = 0;
  const MeshShape best = best_mesh(request, ranks, states, best_seconds);
  int missing = 0;
  for (const RecipeState& state : states) missing += state.failure ? 0 : state.missing();

  json plan;
  plan["model"] = {{"name", request.model_name},
                   {"blocks", request.model.blocks},
                   {"hidden_size", request.model.hidden_size},
                   {"intermediate_size", request.model.intermediate_size},
                   {"bytes", of.costs.block_bytes() * static_cast<double>(request.model.blocks) +
                                 of.costs.outside_bytes()}};
  plan["ranks"] = ranks;
  plan["nodes"] = of.costs.nodes();
  plan["mesh"] = {{"pipeline", mesh.pipeline}, {"data", mesh.data}};
  plan["best_mesh"] = {{"pipeline", best.pipeline}, {"data", best.data}, {"seconds", best_seconds}};
  plan["device"] = {{"name", request.rates.name}, {"source", request.rates.source}};
  plan["calibration"] = json::object();
  for (const std::string& set : calibration_sets_in_use(config)) {
    const SampleOptions& samples = calibration_set(config, set);
    plan["calibration"][set] = {{"samples", samples.samples},
                                {"sequence_length", samples.sequence_length},
                                {"shards", samples.shards}};
  }
  plan["units"] = {
      {"all", static_cast<int>(states.size()) * static_cast<int>(request.model.blocks)},
      {"missing", missing}};
  plan["seconds"] = of.simulation.seconds;
  plan["utilisation"] = of.simulation.utilisation;
  plan["phases"] = of.simulation.phases;
  MemoryUse most;
  for (std::size_t r = 0; r < config.recipes.size(); ++r) {
    const MemoryUse memory = of.costs.memory(r);
    most.device = std::max(most.device, memory.device);
    most.host = std::max(most.host, memory.host);
    most.activations = std::max(most.activations, memory.activations);
    json entry = {{"name", config.recipes[r].name},
                  {"units", states[r].failure ? 0 : states[r].missing()},
                  {"team_seconds", of.simulation.recipe_seconds[r]},
                  {"finished_at", of.simulation.finished_at[r]},
                  {"unit", of.costs.make(r).phases},
                  {"unit_seconds", of.costs.make(r).seconds()},
                  {"record_bytes", of.costs.record_bytes(r)},
                  {"device_bytes", memory.device},
                  {"host_bytes", memory.host},
                  {"activation_bytes", memory.activations}};
    for (const std::string& format : config.export_formats)
      entry["export_bytes"][format] = of.costs.export_bytes(r, format);
    plan["recipes"].push_back(std::move(entry));
  }
  plan["memory"] = {
      {"device", most.device}, {"host", most.host}, {"activations", most.activations}};
  const DiskUse disk = of.costs.disk();
  plan["disk"] = {{"records", disk.records},
                  {"exports", disk.exports},
                  {"snapshots", disk.snapshots},
                  {"calibration", disk.calibration},
                  {"peak", disk.peak()}};
  plan["wire"] = wire_of(of);
  plan["files"] = files_of(of, config);
  for (const auto& intervals : of.simulation.stages)
    plan["stages"].push_back(busy_over_time(intervals, std::max(1e-9, of.simulation.seconds)));
  plan["problems"] = problems_of(request, of);
  plan["hints"] = hints_of(request, of, best, best_seconds);
  plan["sbatch"] = batch_line(request, of);
  return plan;
}

std::string plan_text(const json& plan) {
  std::string text;
  const auto line = [&text]<class... T>(fmt::format_string<T...> format, T&&... values) {
    text += fmt::format(format, std::forward<T>(values)...) + "\n";
  };
  const auto number = [](const json& object, const char* key) {
    return object.at(key).get<double>();
  };
  const auto word = [](const json& object, const char* key) {
    return object.at(key).get<std::string>();
  };
  const json& mesh = plan["mesh"];
  line("{}: {} blocks, {}; {} recipes, {} units of which {} are to be made",
       word(plan["model"], "name"), plan["model"]["blocks"].get<int>(),
       size(number(plan["model"], "bytes")), plan["recipes"].size(),
       plan["units"]["all"].get<int>(), plan["units"]["missing"].get<int>());
  line("{} ranks on {} ({}): {} nodes, mesh {} x {} (pipeline x data)", plan["ranks"].get<int>(),
       word(plan["device"], "name"), word(plan["device"], "source"), plan["nodes"].get<int>(),
       mesh["pipeline"].get<int>(), mesh["data"].get<int>());
  for (const auto& [set, samples] : plan["calibration"].items()) {
    line("calibration{}: {} x {} tokens in {} shards", set == kDefaultCalibration ? "" : " " + set,
         samples["samples"].get<int>(), samples["sequence_length"].get<int>(),
         samples["shards"].get<int>());
  }
  line("");
  line("{} in all, {:.0f} % of the ranks' time at work. Reckoned, not measured.",
       clock(number(plan, "seconds")), 100 * number(plan, "utilisation"));
  line("");
  line("{:<28} {:>6} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}", "recipe", "units", "a unit",
       "of teams", "quantized", "device", "host", "record");
  for (const json& recipe : plan["recipes"]) {
    line("{:<28} {:>6} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}", word(recipe, "name"),
         recipe["units"].get<int>(), clock(number(recipe, "unit_seconds")),
         clock(number(recipe, "team_seconds")), "at " + clock(number(recipe, "finished_at")),
         number(recipe, "device_bytes") > 0 ? size(number(recipe, "device_bytes")) : "-",
         size(number(recipe, "host_bytes")), size(number(recipe, "record_bytes")));
  }
  line("");
  line("seconds of teams by phase (of {} x {}):", mesh["pipeline"].get<int>(),
       clock(number(plan, "seconds")));
  std::vector<std::pair<double, std::string>> phases;
  for (const auto& [phase, seconds] : plan["phases"].items())
    phases.emplace_back(seconds.get<double>(), phase);
  std::ranges::sort(phases, std::greater<>());
  const double all = number(plan, "seconds") * mesh["pipeline"].get<int>();
  for (const auto& [seconds, phase] : phases)
    line("  {:<12} {:>10} {:>5.1f} %", phase, clock(seconds), all > 0 ? 100 * seconds / all : 0.0);
  line("");
  const json& memory = plan["memory"];
  line("memory, of the rank that takes most: device {}, host {}, {} of it activations",
       number(memory, "device") > 0 ? size(number(memory, "device")) : "-",
       size(number(memory, "host")), size(number(memory, "activations")));
  const json& disk = plan["disk"];
  line("disk: {} at most: records {}, exports {}, snapshots {}", size(number(disk, "peak")),
       size(number(disk, "records")), size(number(disk, "exports")),
       size(number(disk, "snapshots")));
  line("files: {} read, {} written", size(number(plan["files"], "read")),
       size(number(plan["files"], "written")));
  const json& wire = plan["wire"];
  line("between ranks: {} sent: {} within teams, {} between stages, {} for gradients",
       size(number(wire, "all")), size(number(wire, "within_teams")),
       size(number(wire, "between_stages")), size(number(wire, "gradients")));
  line("");
  line("stages over time (# 75 % busy or more, + 50, : 25, . less):");
  int stage = 0;
  for (const json& columns : plan["stages"]) {
    std::string row;
    double sum = 0;
    for (const json& busy : columns) {
      const double share = busy.get<double>();
      sum += share;
      row += share >= 0.75   ? '#'
             : share >= 0.5  ? '+'
             : share >= 0.25 ? ':'
             : share > 0.005 ? '.'
                             : ' ';
    }
    line("  {:>3} |{}| {:>3.0f} %", stage++, row, 100 * sum / kColumns);
  }
  for (const json& problem : plan["problems"]) line("does not fit: {}", problem.get<std::string>());
  for (const json& hint : plan["hints"]) line("note: {}", hint.get<std::string>());
  line("");
  line("{}", word(plan, "sbatch"));
  return text;
}

namespace {

// Ranks of a table.
constexpr int kMostRanks = 512;

struct Row {
  std::string name;
  RunConfig config;
};

// What takes more of the ranks' time than it took on one.
std::string what_grew(const Outcome& one, const Outcome& many) {
  const int team = many.costs.team(), one_team = one.costs.team();
  double most = 0;
  std::string what = "nothing";
  for (const auto& [phase, seconds] : many.simulation.phases) {
    const auto before = one.simulation.phases.find(phase);
    const double grown =
        seconds * team - (before == one.simulation.phases.end() ? 0.0 : before->second * one_team);
    if (grown <= most) continue;
    most = grown;
    what = phase;
  }
  return what;
}

}  // namespace

std::string scaling_text(const PlanRequest& request) {
  std::string text;
  const auto line = [&text]<class... T>(fmt::format_string<T...> format, T&&... values) {
    text += fmt::format(format, std::forward<T>(values)...) + "\n";
  };
  std::vector<Row> rows;
  for (const Recipe& recipe : request.config.recipes) {
    const bool there = std::ranges::any_of(
        rows, [&](const Row& row) { return row.config.recipes.front().method == recipe.method; });
    if (!there) rows.push_back({recipe.name, with_recipes(request.config, {recipe})});
  }
  if (request.config.recipes.size() > 1) {
    rows.push_back({fmt::format("all {} recipes", request.config.recipes.size()), request.config});
  }
  line("{}, {} x {} tokens, on {} ({}). Reckoned, not measured.", request.model_name,
       request.config.calibration.samples, request.config.calibration.sequence_length,
       request.rates.name, request.rates.source);
  for (Row& row : rows) {
    PlanRequest of = {row.config,    request.model,       request.shape,
                      request.rates, request.config_file, request.model_name};
    const std::vector<RecipeState> states =
        fresh_states(row.config.recipes, static_cast<int>(request.model.blocks));
    line("");
    line("{}", row.name);
    line("");
    line(
        "| ranks | mesh | time | speed-up | of ideal | ranks busy | the best mesh | its time | "
        "what grew most |");
    line("|---|---|---|---|---|---|---|---|---|");
    std::optional<Outcome> one;
    for (int ranks = 1; ranks <= kMostRanks; ranks *= 2) {
      MeshShape mesh;
      try {
        mesh = mesh_of(of, ranks);
      } catch (const InputError&) {
        line("| {} | fits no mesh | | | | | | | |", ranks);
        continue;
      }
      Outcome outcome = simulate_job(of, ranks, mesh, states);
      double best_seconds = 0;
      const MeshShape best = best_mesh(of, ranks, states, best_seconds);
      if (!one) one.emplace(std::move(outcome));
      const Outcome& now = ranks == one->costs.job().ranks ? *one : outcome;
      const double speed_up = one->simulation.seconds / now.simulation.seconds;
      line("| {} | {} x {} | {} | {:.1f} | {:.0f} % | {:.0f} % | {} x {} | {} | {} |", ranks,
           mesh.pipeline, mesh.data, clock(now.simulation.seconds), speed_up,
           100 * speed_up * one->costs.job().ranks / ranks, 100 * now.simulation.utilisation,
           best.pipeline, best.data, clock(best_seconds),
           ranks == one->costs.job().ranks ? "" : what_grew(*one, now));
    }
  }
  return text;
}

}  // namespace roundhouse
