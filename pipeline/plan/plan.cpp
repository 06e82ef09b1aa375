#include "pipeline/plan/plan.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "pipeline/plan/findings.h"
#include "pipeline/plan/mesh_choice.h"

namespace roundhouse {
namespace {

using nlohmann::json;
using Kind = Step::Kind;

constexpr double kSafety = 1.5;  // of the time limit

// How busy a team's ranks are in each of `columns` equal parts of the job, 0 to 1.
std::vector<double> busy_over_time(const std::vector<Interval>& intervals, double seconds) {
  std::vector<double> busy(kPlanColumns);
  const double width = seconds / kPlanColumns;
  for (const Interval& interval : intervals) {
    const double length = interval.end - interval.begin;
    const int first = std::clamp(static_cast<int>(interval.begin / width), 0, kPlanColumns - 1);
    const int last = std::clamp(static_cast<int>(interval.end / width), 0, kPlanColumns - 1);
    for (int column = first; column <= last && length > 0; ++column) {
      const double overlap =
          std::min(interval.end, (column + 1) * width) - std::max(interval.begin, column * width);
      busy[column] += std::max(0.0, overlap) / width * interval.work / length;
    }
  }
  return busy;
}

json wire_of(const SimulatedJob& of) {
  double sums = 0, loads = 0, activations = 0, gradients = 0;
  for (const auto& steps : of.steps) {
    for (const Step& step : steps) {
      if (step.kind == Kind::kMake) sums += of.costs.unit_traffic(step).sent;
      if (step.kind == Kind::kBackward) gradients += of.costs.gradient_traffic(step.recipe).sent;
      if (step.kind == Kind::kHandOver) activations += of.costs.stream_bytes(step);
    }
  }
  for (std::size_t s = 0; s < of.steps.size(); ++s) {
    for (const Step& step : of.steps[s]) {
      const bool last =
          step.block + 1 == parts_of_rank(static_cast<int>(of.costs.job().model.blocks),
                                          static_cast<int>(s), of.costs.job().mesh.stages())
                                .end;
      // The way back begins with the weights with which the way forward ends.
      if (!(last && step.kind == Kind::kBackward)) loads += of.costs.load_sent(step);
      // Forward and back over each border between stages that a walk passes: those of all lanes.
      if (last && s + 1 < of.steps.size() &&
          (step.kind == Kind::kForward || step.kind == Kind::kBackward))
        gradients += of.costs.gradient_stream_bytes(step.recipe);
    }
  }
  return {{"within_teams", sums + loads},
          {"between_stages", activations},
          {"gradients", gradients},
          {"evaluations", of.simulation.evaluation_sent},
          {"all", sums + loads + activations + gradients + of.simulation.evaluation_sent}};
}

json files_of(const SimulatedJob& of, const RunConfig& config) {
  const double nodes_of_team =
      std::ceil(static_cast<double>(of.costs.team()) / of.costs.job().rates.ranks_a_node);
  double read = 0;
  for (const auto& steps : of.steps) {
    for (const Step& step : steps) {
      const bool weights =
          step.loads || step.kind == Kind::kForward || step.kind == Kind::kBackward;
      if (weights && step.block < of.costs.job().model.blocks) read += of.costs.block_bytes_read();
      if (step.kind == Kind::kReplay && config.recipes[step.recipe].needs.quantized_stream)
        read += nodes_of_team * of.costs.record_bytes(step.recipe);
      if (step.kind == Kind::kLoad) read += of.costs.stream_bytes(step);
    }
  }
  for (std::size_t r = 0; r < config.recipes.size(); ++r) {
    read += static_cast<double>(config.export_formats.size()) *
            (of.costs.records_bytes(r) + of.costs.outside_bytes());
  }
  read += of.simulation.evaluation_read;
  const DiskUse disk = of.costs.disk(of.waves);
  return {
      {"read", read},
      {"written", disk.records + disk.exports + disk.calibration + of.simulation.snapshot_bytes}};
}

std::string quoted_for_shell(const std::string& text) {
  constexpr std::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/=+:,";
  if (!text.empty() && text.find_first_not_of(kPlain) == text.npos) return text;
  std::string quoted = "'";
  for (const char c : text) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

std::string batch_line(const PlanRequest& request, const SimulatedJob& of) {
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

}  // namespace

json make_plan(const PlanRequest& request, int ranks, std::vector<RecipeState> states) {
  const RunConfig& config = request.config;
  const MeshChoice best = fastest_mesh(request, ranks, states, {0, 0, 0});
  const MeshChoice chosen = choose_mesh(request, ranks, states);
  const MeshShape mesh = chosen.mesh;
  const SimulatedJob of = simulate_job(request, ranks, mesh, states, chosen.most);
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
  plan["mesh"] = {{"lanes", mesh.lanes},
                  {"pipeline", mesh.pipeline},
                  {"data", mesh.data},
                  {"wave", chosen.most}};
  plan["best_mesh"] = {{"lanes", best.mesh.lanes},
                       {"pipeline", best.mesh.pipeline},
                       {"data", best.mesh.data},
                       {"seconds", best.seconds}};
  plan["device"] = {{"name", request.rates.name}, {"source", request.rates.source}};
  plan["calibration"] = json::object();
  for (const std::string& set : calibration_sets_in_use(config)) {
    const SampleOptions& samples = calibration_set(config, set);
    plan["calibration"][set] = {{"samples", samples.samples},
                                {"sequence_length", samples.sequence_length},
                                {"shards", samples.shards}};
  }
  int units = 0;
  for (const Recipe& recipe : config.recipes)
    units += recipe.units(static_cast<int>(request.model.blocks));
  plan["units"] = {{"all", units}, {"missing", missing}};
  plan["seconds"] = of.simulation.seconds;
  plan["utilisation"] = of.simulation.utilisation;
  plan["phases"] = of.simulation.phases;
  std::vector<std::size_t> all(config.recipes.size());
  std::iota(all.begin(), all.end(), 0);
  const MemoryUse evaluating = of.costs.evaluation_memory();
  MemoryUse most = evaluating;
  double units_host = 0;
  plan["waves"] = json::array();
  for (const Wave& wave : waves_of(all, of.waves)) {
    const MemoryUse memory = of.costs.memory(wave);
    most.device = std::max(most.device, memory.device);
    most.host = std::max(most.host, memory.host);
    units_host = std::max(units_host, memory.host);
    most.activations = std::max(most.activations, memory.activations);
    json& names = plan["waves"].emplace_back(json::array());
    for (const std::size_t r : wave) names.push_back(config.recipes[r].name);
  }
  for (std::size_t r = 0; r < config.recipes.size(); ++r) {
    const MemoryUse memory = of.costs.memory({r});
    json entry = {{"name", config.recipes[r].name},
                  {"units", states[r].failure ? 0 : states[r].missing()},
                  {"team_seconds", of.simulation.recipe_seconds[r]},
                  {"finished_at", of.simulation.finished_at[r]},
                  {"unit", of.costs.make(r).phases},
                  {"unit_seconds", of.costs.make(r).seconds()},
                  {"lane", of.lane_of[r]},
                  {"record_bytes", of.costs.record_bytes(r)},
                  {"device_bytes", memory.device},
                  {"host_bytes", memory.host},
                  {"activation_bytes", memory.activations}};
    for (const std::string& format : config.export_formats)
      entry["export_bytes"][format] = of.costs.export_bytes(r, format);
    plan["recipes"].push_back(std::move(entry));
  }
  plan["memory"] = {{"device", most.device},
                    {"host", most.host},
                    {"activations", most.activations},
                    {"units_host", units_host}};
  const DiskUse disk = of.costs.disk(of.waves);
  plan["disk"] = {{"records", disk.records},
                  {"exports", disk.exports},
                  {"snapshots", disk.snapshots},
                  {"calibration", disk.calibration},
                  {"peak", disk.peak()}};
  plan["wire"] = wire_of(of);
  plan["files"] = files_of(of, config);
  // Of one recipe by all ranks together.
  const EvaluationCost evaluation = of.costs.evaluation(CostModel::Evaluated::kRecipe, ranks);
  plan["evaluation"] = {{"rings", evaluation.shape.rings},
                        {"blocks_at_once", evaluation.shape.blocks_at_once},
                        {"seconds", evaluation.seconds},
                        {"block_reads", evaluation.reads},
                        {"messages", evaluation.messages},
                        {"sent", evaluation.sent},
                        {"device_bytes", evaluating.device},
                        {"host_bytes", evaluating.host},
                        {"activation_bytes", evaluating.activations},
                        {"all_messages", of.simulation.evaluation_messages}};
  for (const auto& intervals : of.simulation.stages)
    plan["stages"].push_back(busy_over_time(intervals, std::max(1e-9, of.simulation.seconds)));
  plan["problems"] = problems_of(request, of);
  plan["hints"] = hints_of(request, of, best);
  plan["sbatch"] = batch_line(request, of);
  return plan;
}

}  // namespace roundhouse
