#include "stages/report/timeline.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>
#include <vector>

#include <fmt/format.h>
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

// Ends are rounded, not lengths: what lies within something else on the clock does so in the trace.
Json slice(const std::string& name, const std::string& kind, double begin, double end, int process,
           int track) {
  const double at = microseconds(begin);
  return {{"name", name},   {"cat", kind}, {"ph", "X"}, {"ts", at}, {"dur", microseconds(end) - at},
          {"pid", process}, {"tid", track}};
}

// Numbers of processes and tracks. Perfetto takes 0 for a machine's idle process, a track for the same whatever its process, and that with
// its process's number for the first one: they begin at 1, each track has its own, and a process that of its first.
constexpr int kWork = 1;
int track_of(int rank) { return kWork + rank; }

Json name_of(const char* what, const std::string& name, int process, int track) {
  return {
      {"name", what}, {"ph", "M"}, {"pid", process}, {"tid", track}, {"args", {{"name", name}}}};
}

// Returns how many ranks there are.
int add_spans(const ReportRun& run, double origin, Json& events) {
  std::map<int, std::vector<const Span*>> by_rank;
  for (const Span& span : run.spans) {
    for (int rank = span.first_rank; rank < span.first_rank + span.ranks; ++rank)
      by_rank[rank].push_back(&span);
  }
  for (auto& [rank, spans] : by_rank) {
    const int track = track_of(rank);
    events.push_back(name_of("thread_name", fmt::format("rank {}", rank), kWork, track));
    std::ranges::stable_sort(spans, {}, [](const Span* span) { return span->begin; });
    double free =
        -INFINITY;  // a rank does one thing after the other, and the journal's clock counts milliseconds
    for (const Span* span : spans) {
      const double begin = std::max(span->begin, free), end = std::max(begin, span->end);
      free = end;
      events.push_back(slice(span->what, span->kind, begin - origin, end - origin, kWork, track));
      double at = begin;
      for (const auto& [phase, seconds] : in_order(span->phases)) {
        const double until = std::min(at + seconds, end);
        if (!(until > at)) continue;
        events.push_back(slice(phase, "phase", at - origin, until - origin, kWork, track));
        at = until;
      }
    }
  }
  return by_rank.empty() ? 0 : by_rank.rbegin()->first + 1;
}

// A track for each sender and receiver; more of them where something is sent while something else is still on its way.
void add_transfers(const ReportRun& run, double origin, int process, Json& events) {
  std::map<std::pair<int, int>, std::vector<const Transfer*>> links;
  for (const Transfer& transfer : run.transfers)
    links[{transfer.from, transfer.to}].push_back(&transfer);
  int track = process;
  for (auto& [link, transfers] : links) {
    std::ranges::stable_sort(transfers, {}, [](const Transfer* each) { return each->begin; });
    std::vector<double> busy;  // until, by track of the link
    const int first = track;
    for (const Transfer* each : transfers) {
      const auto idle =
          std::ranges::find_if(busy, [&](double until) { return until <= each->begin; });
      const auto lane = idle - busy.begin();
      if (idle == busy.end()) busy.push_back(0);
      busy[lane] = each->end;
      Json event = slice(each->what, "transfer", each->begin - origin, each->end - origin, process,
                         first + static_cast<int>(lane));
      event["args"] = {{"from", each->from},
                       {"to", each->to},
                       {"messages", each->messages},
                       {"bytes", each->bytes}};
      events.push_back(std::move(event));
    }
    for (std::size_t lane = 0; lane < busy.size(); ++lane, ++track) {
      events.push_back(name_of("thread_name",
                               fmt::format("rank {} to rank {}", link.first, link.second), process,
                               track));
    }
  }
}

}  // namespace

std::string to_trace(const ReportRun& run) {
  double origin = INFINITY;
  for (const Span& span : run.spans) origin = std::min(origin, span.begin);
  for (const Transfer& transfer : run.transfers) origin = std::min(origin, transfer.begin);
  Json events = Json::array();
  events.push_back(name_of("process_name", run.name, kWork, kWork));
  const int transfers = track_of(add_spans(run, origin, events));
  if (!run.transfers.empty()) {
    events.push_back(name_of("process_name", run.name + ": transfers", transfers, transfers));
    add_transfers(run, origin, transfers, events);
  }
  const Json trace = {{"displayTimeUnit", "ms"}, {"traceEvents", std::move(events)}};
  return trace.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace roundhouse
