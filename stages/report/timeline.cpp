#include "stages/report/timeline.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

namespace roundhouse {
namespace {

using Json = nlohmann::ordered_json;

double microseconds(double seconds) { return std::round(seconds * 1e6); }

// What a unit begins with, the rest by name, what it ends with.
std::vector<std::pair<std::string, double>> in_order(const std::map<std::string, double>& phases) {
  std::vector<std::pair<std::string, double>> ordered(phases.begin(), phases.end());
  const auto place = [](const std::pair<std::string, double>& phase) {
    if (phase.first == "receive") return -2;
    if (phase.first == "load") return -1;
    if (phase.first == "commit") return 1;
    return phase.first == "send" ? 2 : 0;
  };
  std::ranges::stable_sort(ordered, {}, place);
  return ordered;
}

Json slice(const std::string& name, const std::string& kind, double begin, double seconds,
           int rank) {
  return {{"name", name},
          {"cat", kind},
          {"ph", "X"},
          {"ts", microseconds(begin)},
          {"dur", microseconds(seconds)},
          {"pid", 0},
          {"tid", rank}};
}

}  // namespace

std::string to_trace(const ReportRun& run) {
  double origin = INFINITY;
  for (const Span& span : run.spans) origin = std::min(origin, span.begin);
  Json events = Json::array();
  events.push_back(
      {{"name", "process_name"}, {"ph", "M"}, {"pid", 0}, {"args", {{"name", run.name}}}});
  std::set<int> ranks;
  for (const Span& span : run.spans) {
    for (int rank = span.first_rank; rank < span.first_rank + span.ranks; ++rank) {
      if (ranks.insert(rank).second) {
        events.push_back({{"name", "thread_name"},
                          {"ph", "M"},
                          {"pid", 0},
                          {"tid", rank},
                          {"args", {{"name", "rank " + std::to_string(rank)}}}});
      }
      events.push_back(
          slice(span.what, span.kind, span.begin - origin, span.end - span.begin, rank));
      double at = span.begin;
      for (const auto& [phase, seconds] : in_order(span.phases)) {
        const double own = std::min(seconds, span.end - at);
        if (!(own > 0)) continue;
        events.push_back(slice(phase, "phase", at - origin, own, rank));
        at += own;
      }
    }
  }
  const Json trace = {{"displayTimeUnit", "ms"}, {"traceEvents", std::move(events)}};
  return trace.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace roundhouse
