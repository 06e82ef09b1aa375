#include "stages/report/plot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "stages/report/busy.h"
#include "stages/report/heat_map.h"
#include "stages/report/timeline.h"
#include "tests/stages/report/example_report.h"

namespace roundhouse {
namespace {

using Json = nlohmann::json;
using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

TEST(PlotTest, TheFrontIsWhatNoneOfAsFewBitsBeats) {
  const std::vector<PlotPoint> points = {{2, 9, "a", "x"},
                                         {3, 4, "b", "x"},
                                         {3, 5, "worse at as many bits", "y"},
                                         {3.5, 4, "no better for more bits", "y"},
                                         {4, 3, "c", "x"},
                                         {4, 3, "as good as c", "y"}};
  EXPECT_THAT(pareto_front(points, true), ElementsAre(true, true, false, false, true, true));
  EXPECT_THAT(pareto_front(points, false), ElementsAre(true, false, false, false, false, false));
}

TEST(PlotTest, TicksAreRoundAndFew) {
  EXPECT_THAT(axis_ticks(1.9, 4.3, false), ElementsAre(2, 2.5, 3, 3.5, 4));
  EXPECT_THAT(axis_ticks(0, 100, false), ElementsAre(0, 20, 40, 60, 80, 100));
  EXPECT_THAT(axis_ticks(0.002, 3, true), ElementsAre(0.01, 0.1, 1));
  EXPECT_THAT(axis_ticks(2.3, 40, true), ElementsAre(3, 5, 10, 20, 30));
  EXPECT_THAT(axis_ticks(2.3, 2.9, true).size(), testing::Ge(3u))
      << "near each other they are as on a linear axis";
  EXPECT_THAT(axis_ticks(5, 5, false), IsEmpty());
  EXPECT_THAT(axis_ticks(0, NAN, false), IsEmpty());
  EXPECT_LE(axis_ticks(1e-300, 1e300, true).size(), 12u);
}

TEST(PlotTest, PlacesAreWhereTheScaleSays) {
  const Scale scale(2, 4, 100, 300);
  EXPECT_EQ(scale(2), 100);
  EXPECT_EQ(scale(3.5), 250);
  const Scale flat(5, 5, 0, 10);
  EXPECT_EQ(flat(5), 0);

  // Accuracies 50 and 90 at 2 and 4 bits: linear, 4 % of 40 as margin, so 90 lies 1.6/43.2 below the top.
  PlotFigure figure{
      .title = "t", .decimals = 2, .lower = false, .logarithmic = false, .points = {}};
  figure.points = {{2, 50, "a", "x"}, {4, 90, "<b>", "x"}};
  const Json plot = draw(figure, {"x"});
  ASSERT_THAT(plot["marks"], SizeIs(2));
  // Bits from 1.85 to 4.15 over 54 to 468: 54 + 0.15 / 2.3 * 414 = 81; 276 - 41.6 / 43.2 * 260 = 25.6.
  EXPECT_EQ(plot["marks"][0]["x"], "81.0");
  EXPECT_EQ(plot["marks"][1]["x"], "441.0");
  EXPECT_EQ(plot["marks"][1]["y"], "25.6");
  EXPECT_EQ(plot["marks"][0]["y"], "266.4");
  EXPECT_EQ(plot["lines"][0]["path"], "M81.0 266.4L441.0 25.6");
  EXPECT_EQ(plot["marks"][1]["tip"], "<b>: 4.00 bits a weight, 90.00, Pareto front");
}

TEST(PlotTest, WhatIsFarOffStandsAtTheEdge) {
  PlotFigure figure{.title = "t", .points = {}, .original = 2};
  figure.points = {{2, 1e300, "broken", "x"}, {3, 2.5, "b", "x"}, {4, 2.2, "c", "x"}};
  const Json plot = draw(figure, {"x"});
  EXPECT_EQ(plot["marks"][0]["off"], true);
  EXPECT_EQ(plot["marks"][0]["y"], "16.0");
  EXPECT_EQ(plot["marks"][0]["value"], "1.00e+300");
  EXPECT_EQ(plot["marks"][1]["off"], false);
  EXPECT_EQ(plot["off_scale"], true);
  figure.original = 0;
  EXPECT_EQ(draw(figure, {"x"})["marks"][0]["off"], true)
      << "whether the original is measured or not";
  figure.decades = true;
  EXPECT_EQ(draw(figure, {"x"})["marks"][0]["off"], false) << "a KL divergence";
}

TEST(PlotTest, PicturesAreOfWhatTwoRecipesHave) {
  Report report = example_report();
  const auto titles = [&] {
    std::vector<std::string> found;
    for (const PlotFigure& figure : plot_figures(rows_by_model(report)[0].second, report))
      found.push_back(figure.title + " " + std::to_string(figure.points.size()));
    return found;
  };
  // The recipe whose perplexity is not finite, and that has no average, is in neither.
  EXPECT_THAT(titles(), ElementsAre("Perplexity on test 2", "Average accuracy of tasks (%) 2"));
  report.rows[1].perplexity.clear();
  report.rows[1].tasks.clear();
  EXPECT_THAT(titles(), IsEmpty());
  for (ReportRow& row : report.rows) row.divergence = {{"test", row.is_original() ? 0 : 0.1}};
  EXPECT_THAT(titles(), ElementsAre("KL divergence from the original on test 3"));
}

TEST(HeatMapTest, LevelsAreEqualStepsOfTheLogarithm) {
  ReportRow row = report_row("r", "rtn", 4, 2);
  row.errors = {{0, {{"mlp.up_proj", 1e-3}, {"self_attn.q_proj", 1e-1}}},
                {1, {{"mlp.up_proj", 1.05e-3}, {"self_attn.q_proj", NAN}}},
                {2, {{"mlp.up_proj", 1e-2}, {"self_attn.q_proj", 0}}}};
  const HeatLevels levels = heat_levels({row});
  EXPECT_EQ(levels.least, 1e-3);
  EXPECT_EQ(levels.most, 1e-1);
  EXPECT_EQ(levels(1e-3), 0);
  EXPECT_EQ(levels(1.2e-2), 5);  // log(12) / log(100) = 0.54
  EXPECT_EQ(levels(1e-1), 9);
  EXPECT_EQ(levels(5), 9);
  EXPECT_EQ(levels(INFINITY), -1);
  EXPECT_NEAR(levels.bound(5), 1e-2, 1e-9);

  const Json map = draw_heat_map(row, levels, 8);
  EXPECT_THAT(map["linears"], ElementsAre("self_attn.q_proj", "mlp.up_proj"));
  EXPECT_EQ(map["blocks"], "8") << "the model's";
  EXPECT_EQ(map["largest"], "1.00e-01, block 0, self_attn.q_proj");
  row.blocks = 3;
  row.include = {"lm_head"};
  row.errors[3] = {{"lm_head", 2e-1}};
  EXPECT_EQ(draw_heat_map(row, levels, 4)["largest"], "2.00e-01, head, lm_head");
  std::map<std::string, std::string> paths;
  for (const Json& path : map["paths"]) paths[path["level"]] = path["path"];
  // Neighbours of one level are one stroke: of row 1, blocks 0 and 1.
  EXPECT_EQ(paths["0"], "M2 0.5h1M0 1.5h2");
  EXPECT_EQ(paths["9"], "M0 0.5h1");
  EXPECT_EQ(paths["bad"], "M1 0.5h1");
  EXPECT_TRUE(draw_heat_map(report_row("r", "rtn", 4, 2), levels, 8).is_null());
}

Span span(int rank, int ranks, double begin, double end, const std::string& kind) {
  return {.first_rank = rank,
          .ranks = ranks,
          .begin = begin,
          .end = end,
          .kind = kind,
          .what = "w",
          .phases = {}};
}

TEST(BusyTest, PausesAreCutOut) {
  // 10 s of work, a pause of an hour, 10 s; a pause of 1 s in between is kept.
  const WorkingTime time({span(0, 1, 100, 105, "quantize"), span(0, 1, 106, 110, "quantize"),
                          span(1, 1, 3710, 3720, "export")});
  EXPECT_EQ(time.total(), 20);
  EXPECT_EQ(time(100), 0);
  EXPECT_EQ(time(106), 6);
  EXPECT_EQ(time(2000), 10);
  EXPECT_EQ(time(3715), 15);
  ASSERT_THAT(time.pauses(), SizeIs(1));
  EXPECT_EQ(time.pauses()[0].at, 10);
  EXPECT_EQ(time.pauses()[0].seconds, 3600);
  EXPECT_EQ(WorkingTime({}).total(), 0);
}

TEST(BusyTest, LanesAreRanks) {
  ReportRun run;
  EXPECT_TRUE(draw_busy(run).is_null());
  run.spans = {span(0, 2, 0, 50, "quantize"), span(2, 2, 50, 100, "evaluate")};
  const Json drawing = draw_busy(run);
  EXPECT_EQ(drawing["ranks"], "4");
  ASSERT_THAT(drawing["kinds"], SizeIs(2));
  EXPECT_EQ(drawing["kinds"][0]["path"], "M0.0 0.1h500.0v1.8h-500.0z");
  EXPECT_EQ(drawing["kinds"][1]["path"], "M500.0 2.1h500.0v1.8h-500.0z");
  EXPECT_EQ(drawing["kinds"][0]["share"], "25");
}

TEST(TimelineTest, ASpanIsASliceOfEachOfItsRanks) {
  ReportRun run;
  run.name = "demo";
  Span unit = span(2, 2, 1000, 1002, "quantize");
  unit.what = "gptq-w4g128 block 3";
  unit.phases = {{"commit", 0.25}, {"gram", 1}, {"load", 0.5}};
  run.spans = {span(0, 1, 998, 999, "export"), unit};
  const Json trace = Json::parse(to_trace(run));
  std::vector<std::string> slices;
  for (const Json& event : trace["traceEvents"]) {
    if (event["ph"] != "X") continue;
    slices.push_back(event["name"].get<std::string>() + " " + event["tid"].dump() + " " +
                     event["ts"].dump() + " " + event["dur"].dump());
  }
  EXPECT_THAT(slices,
              ElementsAre("w 1 0.0 1000000.0", "gptq-w4g128 block 3 3 2000000.0 2000000.0",
                          "load 3 2000000.0 500000.0", "gram 3 2500000.0 1000000.0",
                          "commit 3 3500000.0 250000.0",
                          "gptq-w4g128 block 3 4 2000000.0 2000000.0", "load 4 2000000.0 500000.0",
                          "gram 4 2500000.0 1000000.0", "commit 4 3500000.0 250000.0"));
}

// What the Trace Event Format asks for, and that slices of a track lie apart or one within the other. And what Perfetto does: 0 is the
// idle process, which it hides, and a track of the same number is the same one in every process.
void expect_well_formed(const Json& trace) {
  std::map<std::pair<int, int>, std::vector<std::pair<double, double>>> tracks;
  std::map<int, std::string> process_names, track_names;
  std::map<int, int> process_of_track;
  for (const Json& event : trace["traceEvents"]) {
    ASSERT_TRUE(event["name"].is_string() && event["pid"].is_number_integer() &&
                event["tid"].is_number_integer())
        << event;
    const int process = event["pid"], of_track = event["tid"];
    EXPECT_TRUE(process > 0 && of_track > 0) << event;
    EXPECT_EQ(process_of_track.emplace(of_track, process).first->second, process) << event;
    if (event["ph"] == "M") {
      auto& names = event["name"] == "process_name" ? process_names : track_names;
      const int number = event["name"] == "process_name" ? process : of_track;
      EXPECT_TRUE(names.emplace(number, event["args"]["name"]).second) << "named twice: " << event;
      continue;
    }
    ASSERT_EQ(event["ph"], "X") << event;
    const double begin = event["ts"].get<double>(), length = event["dur"].get<double>();
    EXPECT_GE(begin, 0) << event;
    EXPECT_GE(length, 0) << event;
    EXPECT_EQ(begin, std::round(begin)) << "microseconds: " << event;
    tracks[{event["pid"].get<int>(), event["tid"].get<int>()}].push_back({begin, begin + length});
  }
  for (auto& [track, slices] : tracks) {
    EXPECT_TRUE(process_names.contains(track.first) && track_names.contains(track.second))
        << "without a name: " << track.first << "/" << track.second;
    std::ranges::stable_sort(slices, [](const auto& a, const auto& b) {
      return a.first != b.first ? a.first < b.first : a.second > b.second;
    });
    std::vector<double> open;  // ends of what is around
    for (const auto& [begin, end] : slices) {
      while (!open.empty() && open.back() <= begin) open.pop_back();
      EXPECT_TRUE(open.empty() || end <= open.back())
          << "track " << track.first << "/" << track.second << ": a slice of " << begin << " to "
          << end << " begins within one that ends at " << open.back();
      open.push_back(end);
    }
  }
}

TEST(TimelineTest, SlicesNestWhateverTheClocksSay) {
  ReportRun run;
  Span first = span(0, 2, 1000.0000004, 1001.0000004, "quantize");
  first.phases = {{"gram", 0.3333333}, {"load", 0.3333334}, {"solve", 0.9}};
  // The journal counts milliseconds: what came after seems to begin before.
  run.spans = {first, span(1, 1, 1000.9996, 1002.5, "quantize"), span(0, 1, 1001, 1001, "export")};
  const Json trace = Json::parse(to_trace(run));
  expect_well_formed(trace);
  int slices = 0;
  for (const Json& event : trace["traceEvents"]) slices += event["ph"] == "X" ? 1 : 0;
  EXPECT_EQ(slices, 2 * 4 + 2);
}

TEST(TimelineTest, TransfersHaveTracksOfTheirSendersAndReceivers) {
  ReportRun run;
  run.name = "demo";
  run.spans = {span(0, 2, 1000, 1010, "quantize")};
  run.transfers = {
      {.from = 0, .to = 1, .begin = 999, .end = 1003, .bytes = 4096, .what = "a before block 3"},
      {.from = 1, .to = 0, .begin = 1001, .end = 1002, .messages = 7, .bytes = 70, .what = "b"},
      {.from = 0, .to = 1, .begin = 1002, .end = 1004, .bytes = 1, .what = "meanwhile"},
      {.from = 0, .to = 1, .begin = 1003, .end = 1005, .bytes = 2, .what = "after"}};
  const Json trace = Json::parse(to_trace(run));
  expect_well_formed(trace);
  std::vector<std::string> slices;
  std::map<int, std::string> names;
  for (const Json& event : trace["traceEvents"]) {
    if (event["pid"] != 3) continue;  // after the tracks of two ranks
    if (event["name"] == "thread_name") names[event["tid"]] = event["args"]["name"];
    if (event["ph"] == "X")
      slices.push_back(event["name"].get<std::string>() + " " + event["tid"].dump() + " " +
                       event["ts"].dump() + " " + event["dur"].dump() + " " + event["args"].dump());
  }
  EXPECT_THAT(
      slices,
      ElementsAre(
          R"(a before block 3 3 0.0 4000000.0 {"bytes":4096.0,"from":0,"messages":1.0,"to":1})",
          R"(meanwhile 4 3000000.0 2000000.0 {"bytes":1.0,"from":0,"messages":1.0,"to":1})",
          R"(after 3 4000000.0 2000000.0 {"bytes":2.0,"from":0,"messages":1.0,"to":1})",
          R"(b 5 2000000.0 1000000.0 {"bytes":70.0,"from":1,"messages":7.0,"to":0})"));
  EXPECT_EQ(names, (std::map<int, std::string>{
                       {3, "rank 0 to rank 1"}, {4, "rank 0 to rank 1"}, {5, "rank 1 to rank 0"}}));
}

}  // namespace
}  // namespace roundhouse
