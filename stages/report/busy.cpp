#include "stages/report/busy.h"

#include <algorithm>
#include <cmath>
#include <map>

#include <fmt/format.h>

#include "stages/report/figure_text.h"

namespace roundhouse {
namespace {

constexpr double kWidth = 1000;
constexpr double kNear = 0.5;  // of the width: spans nearer than this are drawn as one

constexpr const char* kKinds[] = {"quantize", "gradients", "export", "evaluate"};

}  // namespace

WorkingTime::WorkingTime(const std::vector<Span>& spans) {
  std::vector<std::pair<double, double>> busy;
  for (const Span& span : spans) busy.emplace_back(span.begin, span.end);
  std::ranges::sort(busy);
  double work = 0;
  for (const auto& [begin, end] : busy) {
    if (!pieces_.empty() && begin <= pieces_.back().end) {
      work += std::max(0.0, end - pieces_.back().end);
      pieces_.back().end = std::max(pieces_.back().end, end);
    } else {
      pieces_.push_back({begin, end, 0});
      work += end - begin;
    }
  }
  std::vector<Piece> joined;
  for (const Piece& piece : pieces_) {
    if (!joined.empty() && piece.begin - joined.back().end <= work / 10) {
      joined.back().end = piece.end;
      continue;
    }
    if (!joined.empty()) {
      total_ += joined.back().end - joined.back().begin;
      pauses_.push_back({total_, piece.begin - joined.back().end});
    }
    joined.push_back({piece.begin, piece.end, total_});
  }
  if (!joined.empty()) total_ += joined.back().end - joined.back().begin;
  pieces_ = std::move(joined);
}

double WorkingTime::operator()(double time) const {
  double before = 0;
  for (const Piece& piece : pieces_) {
    if (time < piece.begin) break;
    before = piece.before + std::min(time, piece.end) - piece.begin;
  }
  return before;
}

nlohmann::json draw_busy(const ReportRun& run) {
  const WorkingTime time(run.spans);
  if (!(time.total() > 0)) return nullptr;
  int ranks = 1;
  for (const Span& span : run.spans) ranks = std::max(ranks, span.first_rank + span.ranks);

  // By kind and lanes, in order of time.
  struct Bar {
    double begin, end;
  };
  std::map<std::pair<std::string, std::pair<int, int>>, std::vector<Bar>> bars;
  std::vector<const Span*> spans;
  for (const Span& span : run.spans) spans.push_back(&span);
  std::ranges::stable_sort(spans, {}, [](const Span* span) { return span->begin; });
  std::map<std::string, double> rank_seconds;
  for (const Span* span : spans) {
    const double scale = kWidth / time.total();
    const Bar bar{time(span->begin) * scale, time(span->end) * scale};
    rank_seconds[span->kind] += (span->end - span->begin) * span->ranks;
    std::vector<Bar>& own = bars[{span->kind, {span->first_rank, span->ranks}}];
    if (!own.empty() && bar.begin - own.back().end < kNear) {
      own.back().end = std::max(own.back().end, bar.end);
    } else {
      own.push_back(bar);
    }
  }
  std::map<std::string, std::string> paths;
  for (const auto& [key, own] : bars) {
    const auto& [first, count] = key.second;
    for (const Bar& bar : own) {
      const double width = std::max(bar.end - bar.begin, kNear);
      paths[key.first] += fmt::format("M{:.1f} {}.1h{:.1f}v{:.1f}h-{:.1f}z", bar.begin, first,
                                      width, count - 0.2, width);
    }
  }
  nlohmann::json drawing = {{"run", run.name},
                            {"ranks", std::to_string(ranks)},
                            {"last_rank", std::to_string(ranks - 1)},
                            {"several", ranks > 1},
                            {"height", std::to_string(std::clamp(ranks * 16, 24, 320))},
                            {"working", seconds_text(time.total())},
                            {"kinds", nlohmann::json::array()},
                            {"pauses", nlohmann::json::array()},
                            {"paused", ""}};
  for (const char* kind : kKinds) {
    if (!paths.contains(kind)) continue;
    const double share = rank_seconds[kind] / (time.total() * ranks);
    drawing["kinds"].push_back({{"kind", kind},
                                {"path", paths[kind]},
                                {"share", fixed(100 * share, 0)},
                                {"seconds", seconds_text(rank_seconds[kind] / ranks)}});
  }
  double paused = 0;
  for (const WorkingTime::Pause& pause : time.pauses()) {
    paused += pause.seconds;
    drawing["pauses"].push_back({{"at", fmt::format("{:.1f}", pause.at / time.total() * kWidth)},
                                 {"ranks", std::to_string(ranks)}});
  }
  if (paused > 0) drawing["paused"] = seconds_text(paused);
  return drawing;
}

}  // namespace roundhouse
