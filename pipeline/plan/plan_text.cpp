#include "pipeline/plan/plan_text.h"

#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/counted.h"
#include "pipeline/config/config.h"
#include "pipeline/plan/plan.h"
#include "pipeline/plan/quantities.h"
#include "pipeline/schedule/mesh.h"

namespace roundhouse {

using nlohmann::json;

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
  line("{}: {}, {}; {}, {} of which {} are to be made", word(plan["model"], "name"),
       counted(plan["model"]["blocks"].get<int>(), "block"), size(number(plan["model"], "bytes")),
       counted(plan["recipes"].size(), "recipe"), counted(plan["units"]["all"].get<int>(), "unit"),
       plan["units"]["missing"].get<int>());
  const MeshShape shape{mesh["pipeline"].get<int>(), mesh["data"].get<int>(),
                        mesh["lanes"].get<int>()};
  line("{} on {} ({}): {}, mesh {} (pipeline x data)", counted(plan["ranks"].get<int>(), "rank"),
       word(plan["device"], "name"), word(plan["device"], "source"),
       counted(plan["nodes"].get<int>(), "node"), describe(shape));
  if (const int most = mesh["wave"].get<int>(); most > 1)
    line("up to {} recipes go through the model together (mesh.wave)", most);
  for (const auto& [set, samples] : plan["calibration"].items()) {
    line("calibration{}: {} x {} in {}", set == kDefaultCalibration ? "" : " " + set,
         samples["samples"].get<int>(), counted(samples["sequence_length"].get<int>(), "token"),
         counted(samples["shards"].get<int>(), "shard"));
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
  line("seconds of teams by phase (of {} x {}):", shape.stages(), clock(number(plan, "seconds")));
  std::vector<std::pair<double, std::string>> phases;
  for (const auto& [phase, seconds] : plan["phases"].items())
    phases.emplace_back(seconds.get<double>(), phase);
  std::ranges::sort(phases, std::greater<>());
  const double all = number(plan, "seconds") * shape.stages();
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
  line(
      "between ranks: {} sent: {} within teams, {} between stages, {} for gradients, {} for "
      "evaluations",
      size(number(wire, "all")), size(number(wire, "within_teams")),
      size(number(wire, "between_stages")), size(number(wire, "gradients")),
      size(number(wire, "evaluations")));
  if (const json& evaluation = plan["evaluation"]; number(evaluation, "seconds") > 0) {
    line(
        "evaluation of a recipe by all ranks: {}, {}, loads of each block: {:.0f}, messages: "
        "{:.0f}",
        clock(number(evaluation, "seconds")), counted(evaluation["rings"].get<int>(), "ring"),
        number(evaluation, "block_reads"), number(evaluation, "messages"));
  }
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
    line("  {:>3} |{}| {:>3.0f} %", stage++, row, 100 * sum / kPlanColumns);
  }
  for (const json& problem : plan["problems"]) line("does not fit: {}", problem.get<std::string>());
  for (const json& hint : plan["hints"]) line("note: {}", hint.get<std::string>());
  line("");
  line("{}", word(plan, "sbatch"));
  return text;
}

}  // namespace roundhouse
