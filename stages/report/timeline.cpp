#include "stages/report/timeline.h"

#include <algorithm>
#include <cmath>
#include <map>
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

// Ends are rounded, not lengths: what lies within something else on the clock does so in the trace.
Json slice(const std::string& name, const std::string& kind, double begin, double end, int process,
           int track) {
  const double at = microseconds(begin);
  return {{"name", name},   {"cat", kind}, {"ph", "X"}, {"ts", at}, {"dur", microseconds(end) - at},
          {"pid", process}, {"tid", track}};
}

constexpr int kWork = 0, kTransfers = 1;  // processes

Json name_of(const char* what, const std::string& name, int process, int track) {
  return {
      {"name", what}, {"ph", "M"}, {"pid", process}, {"tid", track}, {"args", {{"name", name}}}};
}

void add_spans(const ReportRun& run, double origin, Json& events) {
  std::map<int, std::vector<const Span*>> by_rank;
  for (const Span& span : run.spans) {
    for (int rank = span.first_rank; rank < span.first_rank + span.ranks; ++rank)
      by_rank[rank].push_back(&span);
  }
  for (auto& [rank, spans] : by_rank) {
    events.push_back(name_of("thread_name", "rank " + std::to_string(rank), kWork, rank));
    std::ranges::stable_sort(spans, {}, [](const Span* span) { return span->begin; });
    double free =
        -INFINITY;  // a rank does one thing after the other, and the journal's clock counts milliseconds
    for (const Span* span : spans) {
      const double begin = std::max(span->begin, free), end = std::max(begin, span->end);
      free = end;
      events.push_back(slice(span->what, span->kind, begin - origin, end - origin, kWork, rank));
      double at = begin;
      for (const auto& [phase, seconds] : in_order(span->phases)) {
        const double until = std::min(at + seconds, end);
        if (!(until > at)) continue;
        events.push_back(slice(phase, "phase", at - origin, until - origin, kWork, rank));
        at = until;
      }
    }
  }
}

// A track for each sender and receiver; more of them where something is sent while something else is still on its way.
void add_transfers(const ReportRun& run, double origin, Json& events) {
  std::map<std::pair<int, int>, std::vector<const Transfer*>> links;
  for (const Transfer& transfer : run.transfers)
    links[{transfer.from, transfer.to}].push_back(&transfer);
  int track = 0;
  for (auto& [link, transfers] : links) {
    std::ranges::stable_sort(transfers, {}, [](const Transfer* each) { return each->begin; });
    std::vector<double> busy;  // until, by track of the link
    const int first = track;
    for (const Transfer* each : transfers) {
      const auto idle =
          std::ranges::find_if(busy, [&](double until) { return until <= each->begin; });
      const auto lane = idle - busy.begin();
      if (idle == busy.end()) busy.push_back(0);
      busy[static_cast<std::size_t>(lane)] = each->end;
      Json event = slice(each->what, "transfer", each->begin - origin, each->end - origin,
                         kTransfers, first + static_cast<int>(lane));
      event["args"] = {{"from", each->from},
                       {"to", each->to},
                       {"messages", each->messages},
                       {"bytes", each->bytes}};
      events.push_back(std::move(event));
    }
    for (std::size_t lane = 0; lane < busy.size(); ++lane, ++track) {
      events.push_back(
          name_of("thread_name",
                  "rank " + std::to_string(link.first) + " to rank " + std::to_string(link.second),
                  kTransfers, track));
    }
  }
}

}  // namespace

std::string to_trace(const ReportRun& run) {
  double origin = INFINITY;
  for (const Span& span : run.spans) origin = std::min(origin, span.begin);
  for (const Transfer& transfer : run.transfers) origin = std::min(origin, transfer.begin);
  Json events = Json::array();
  events.push_back(name_of("process_name", run.name, kWork, 0));
  add_spans(run, origin, events);
  if (!run.transfers.empty())
    events.push_back(name_of("process_name", run.name + ": transfers", kTransfers, 0));
  add_transfers(run, origin, events);
  const Json trace = {{"displayTimeUnit", "ms"}, {"traceEvents", std::move(events)}};
  return trace.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace roundhouse
