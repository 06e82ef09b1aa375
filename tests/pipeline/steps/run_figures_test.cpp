// A run's folder as a report sees it: unfinished, damaged, or written by somebody who means no good.
#include "pipeline/steps/run_figures.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "base/error.h"
#include "pipeline/run/run_files.h"
#include "pipeline/run/sealed_json.h"
#include "pipeline/steps/journal_facts.h"
#include "pipeline/steps/report_step.h"
#include "stages/report/page.h"
#include "tests/base/temporary_folder.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

class RunFiguresTest : public testing::Test {
 protected:
  RunFiguresTest() {
    write("config.yaml",
          "model: /models/Llama-2-7b-hf\n"
          "run: r\n"
          "recipes:\n"
          "  - {method: rtn, bits: 4, group_size: 128}\n"
          "  - {method: rtn, bits: 3, group_size: -1, symmetric: true}\n"
          "export: {formats: [gptq]}\n"
          "evaluate:\n"
          "  perplexity: [{name: test, text: /data/test.txt}]\n"
          "  tasks: [{name: easy, template: piqa, file: /data/piqa.jsonl}]\n");
    write_sealed_json(run_ / "identity.json", "identity.json",
                      {{"model", "hash"},
                       {"tokenizer", "t"},
                       {"calibration.text", ""},
                       {"blocks", 3},
                       {"keys", Json::object()},
                       {"config", ""}});
  }
  void write(const std::string& name, const std::string& text) const {
    fs::create_directories((run_ / name).parent_path());
    std::ofstream(run_ / name) << text;
  }
  void results(const std::string& recipe, Json object) const {
    write_sealed_json(results_path(run_, recipe), results_key(recipe), std::move(object));
  }

  TemporaryFolder folder_;
  fs::path run_ = folder_.path() / "r";
};

TEST_F(RunFiguresTest, SaysWhatIsMissing) {
  const RunFigures figures = read_run_figures(run_);
  ASSERT_THAT(figures.rows, SizeIs(2));
  EXPECT_EQ(figures.rows[0].variant, "rtn");
  EXPECT_EQ(figures.rows[1].variant, "rtn symmetric");
  EXPECT_EQ(width_of(figures.rows[0]), "W4G128");
  EXPECT_EQ(width_of(figures.rows[1]), "W3");
  EXPECT_THAT(
      figures.run.missing,
      ElementsAre("rtn-w4g128, rtn-w3-symmetric: 0 of 3 blocks are quantized; not measured: "
                  "test, easy; not exported: gptq",
                  "original: not measured: test, easy"));
  EXPECT_EQ(figures.run.model, "Llama-2-7b-hf");
  EXPECT_EQ(figures.model, "hash");
  EXPECT_THAT(figures.run.config, HasSubstr("model: /models/Llama-2-7b-hf\n"));
}

TEST_F(RunFiguresTest, ReadsResultsAndSaysWhatDoesNotCompare) {
  results("original", {{"perplexity", {{"test", 2.5}}}, {"settings", {{"test", {{"limit", 0}}}}}});
  results(
      "rtn-w4g128",
      {{"perplexity", {{"test", nullptr}}},
       {"kl", {{"test", {{"mean", 0.25}}}}},
       {"tasks",
        {{"easy", {{"acc", 0.5}, {"acc_stderr", 0.1}, {"acc_norm", nullptr}, {"documents", 40}}}}},
       {"settings", {{"test", {{"limit", 7}}}, {"easy", {{"template", "piqa"}, {"limit", 40}}}}}});
  write("results/rtn-w3-symmetric.json", "{\"perplexity\": {\"test\": 1}}");
  const RunFigures figures = read_run_figures(run_);
  ASSERT_THAT(figures.rows, SizeIs(3));
  EXPECT_EQ(figures.rows[0].perplexity.at("test"), 2.5);
  EXPECT_TRUE(std::isnan(figures.rows[1].perplexity.at("test")));
  EXPECT_EQ(figures.rows[1].divergence.at("test"), 0.25);
  const TaskFigures& task = figures.rows[1].tasks.at("easy");
  EXPECT_EQ(task.kind, "piqa");
  EXPECT_EQ(task.accuracy->value, 0.5);
  EXPECT_EQ(task.accuracy->standard_error, 0.1);
  EXPECT_TRUE(std::isnan(task.normalized->value));
  EXPECT_EQ(task.documents, 40);
  EXPECT_THAT(figures.rows[2].perplexity, IsEmpty()) << "it has no seal";
  EXPECT_THAT(figures.run.remarks, Contains(HasSubstr("results/rtn-w3-symmetric.json is damaged")));
  EXPECT_THAT(
      figures.run.remarks,
      Contains("test: rtn-w4g128 was measured otherwise than original (limit 7, not 0): they "
               "do not compare"));
  EXPECT_THAT(figures.run.remarks, Contains("easy: of the first 40 documents only"));
}

TEST_F(RunFiguresTest, ReadsTransfersAndNothingElse) {
  const std::string time = "1970-01-02T00:00:10.500Z";
  const Json handover = {
      {"event", "handover"}, {"recipe", "rtn-w4g128"},  {"block", 3},  {"rank", 2}, {"ranks", 2},
      {"time", time},        {"on_its_way_seconds", 4}, {"bytes", 600}};
  Json walk = {{"event", "walk"}, {"recipe", "original"}, {"rank", 2}, {"time", time}};
  walk["transfers"] = {{0, 1, 5, 50, 3.5, 1.5}, {1, 0, 2, 20, 3.0, 2.0}};
  const Json gradients = {{"event", "gradient_transfers"},
                          {"rank", 3},
                          {"time", time},
                          {"transfers", Json::array({Json::array({0, -1, 8, 80, 2.0, 1.0})})}};
  std::string journal = handover.dump() + "\n" + walk.dump() + "\n" + gradients.dump() + "\n";
  // What nobody can have written.
  for (const char* bad : {R"([0, 1])", R"([0, "1", 5, 50, 3, 1])", R"([0, 1.5, 5, 50, 3, 1])",
                          R"([0, -9, 5, 50, 3, 1])", R"([0, 1e9, 5, 50, 3, 1])",
                          R"([1, 1, 5, 50, 3, 1])", R"([0, 1, 5, 50, 1, 3])",
                          R"([0, 1, 5, 50, 1e300, 3])", R"([0, 1, -5, 50, 3, 1])", R"(7)"}) {
    walk["transfers"] = Json::array({Json::parse(bad)});
    journal += walk.dump() + "\n";
  }
  Json lone = handover;
  lone["rank"] = 1;  // no team of two stands before it
  journal += lone.dump() + "\n";
  write("journal.jsonl", journal);

  const double end = 86400 + 10.5;
  std::vector<std::string> transfers;
  for (const Transfer& each : read_run_figures(run_).run.transfers) {
    transfers.push_back(
        each.what + ": " +
        Json{each.from, each.to, each.begin - end, each.end - end, each.messages, each.bytes}
            .dump());
  }
  EXPECT_THAT(transfers, ElementsAre("rtn-w4g128 before block 3: [0,2,-4.0,0.0,1.0,300.0]",
                                     "rtn-w4g128 before block 3: [1,3,-4.0,0.0,1.0,300.0]",
                                     "evaluation of original: [2,3,-3.5,-1.5,5.0,50.0]",
                                     "evaluation of original: [3,2,-3.0,-2.0,2.0,20.0]",
                                     "gradients: [3,2,-2.0,-1.0,8.0,80.0]"));
}

TEST_F(RunFiguresTest, ReadsTheJournal) {
  const Json linear = {{"name", "q_proj"},
                       {"relative_error", 0.25},
                       {"damping_tries", 3},
                       {"damping", 0.04},
                       {"fallback", "rtn"}};
  const Json block = {{"event", "block"},
                      {"recipe", "rtn-w4g128"},
                      {"block", 1},
                      {"rank", 2},
                      {"ranks", 2},
                      {"host", "node-7"},
                      {"time", "1970-01-02T00:00:10.500Z"},
                      {"seconds", 4.5},
                      {"bits_per_weight", 4.15},
                      {"relative_error", 0.2},
                      {"phases", {{"load", 1.5}, {"solve", 3}}},
                      {"linears", {linear}},
                      {"dropped_samples", {{{"linears", "q, k, v"}, {"count", 2}}}}};
  Json again = block;
  again["seconds"] = 5.5;
  again["rank"] = 3;
  again["first_rank"] = 1;
  again["told_after"] = 0.25;
  write("journal.jsonl", block.dump() + "\n" + again.dump() + "\n");
  const RunFigures figures = read_run_figures(run_);
  const ReportRow& row = figures.rows[0];
  EXPECT_EQ(row.seconds, 5.5) << "a block counts as it was made last";
  EXPECT_EQ(row.phases.at("solve"), 3);
  EXPECT_EQ(row.errors.at(1).at("q_proj"), 0.25);
  EXPECT_EQ(row.fallbacks, 1);
  EXPECT_THAT(
      figures.run.fallbacks,
      ElementsAre("rtn-w4g128, block 1, q_proj: damping was raised 2 times, to 0.04; made by rtn",
                  "rtn-w4g128, block 1, q, k, v: 2 samples are not finite "
                  "and were left out"));
  ASSERT_THAT(figures.run.spans, SizeIs(2));
  EXPECT_EQ(figures.run.spans[0].first_rank, 2);
  EXPECT_EQ(figures.run.spans[0].ranks, 2);
  EXPECT_EQ(figures.run.spans[0].end, 86410.5);
  EXPECT_EQ(figures.run.spans[0].begin, 86406);
  EXPECT_EQ(figures.run.spans[1].first_rank, 1) << "told of by another one of the team";
  EXPECT_EQ(figures.run.spans[1].end, 86410.25) << "and later";
  EXPECT_THAT(figures.run.provenance,
              Contains(std::pair<std::string, std::string>("hosts", "node-7")));
}

TEST_F(RunFiguresTest, NamesWhatIsOutsideTheBlocks) {
  const Json linear = {
      {"name", "lm_head"}, {"relative_error", 0.25}, {"damping_tries", 3}, {"damping", 0.04}};
  const Json head = {{"event", "block"},
                     {"recipe", "rtn-w4g128"},
                     {"block", 3},
                     {"outside", {"lm_head"}},
                     {"rank", 0},
                     {"ranks", 1},
                     {"time", "1970-01-02T00:00:10.500Z"},
                     {"seconds", 4.5},
                     {"linears", {linear}},
                     {"dropped_samples", {{{"linears", "lm_head"}, {"count", 2}}}}};
  write("journal.jsonl", head.dump() + "\n");
  const RunFigures figures = read_run_figures(run_);
  EXPECT_THAT(figures.run.fallbacks,
              ElementsAre("rtn-w4g128, head, lm_head: damping was raised 2 times, to 0.04",
                          "rtn-w4g128, head, lm_head: 2 samples are not finite and were left out"));
  ASSERT_THAT(figures.run.spans, SizeIs(1));
  EXPECT_EQ(figures.run.spans[0].what, "rtn-w4g128 head");
}

TEST_F(RunFiguresTest, DoesNotTrustTheJournal) {
  const Json good = {{"event", "block"},
                     {"recipe", "rtn-w4g128"},
                     {"block", 0},
                     {"rank", 0},
                     {"ranks", 1},
                     {"seconds", 1},
                     {"time", "2026-11-28T03:39:54.587Z"}};
  std::string lines;
  const auto add = [&](const char* key, Json value) {
    Json event = good;
    event[key] = std::move(value);
    lines += event.dump() + "\n";
  };
  for (const char* key : {"event", "recipe", "block", "rank", "first_rank", "told_after", "ranks",
                          "seconds", "time", "phases", "linears", "dropped_samples", "mesh", "host",
                          "bits_per_weight", "relative_error", "outside"}) {
    for (const Json& value : std::vector<Json>{nullptr,
                                               -1,
                                               1e300,
                                               2147483647,
                                               "<b>\x01",
                                               Json::array({1}),
                                               {{"a", "b"}},
                                               {{"load", -1}},
                                               {{"load", 1e300}}}) {
      add(key, value);
    }
  }
  for (const char* event : {"quantize", "other_device", "damaged", "pin_failed", "unread_tensors",
                            "export", "task", "gradients_block"})
    add("event", event);
  add("linears",
      {{{"name", 1}, {"relative_error", "x"}}, 7, {{"name", "k"}, {"relative_error", nullptr}}});
  lines += "not JSON\n[1]\n{\"event\": \"block\"";
  write("journal.jsonl", lines);
  const RunFigures figures = read_run_figures(run_);
  for (const Span& span : figures.run.spans) {
    EXPECT_LE(span.first_rank + span.ranks, 1 << 16);
    EXPECT_GT(span.end, span.begin);
  }
  for (const auto& [block, errors] : figures.rows[0].errors) EXPECT_LT(block, 3);
  const std::string html = to_html(read_report({run_, run_}));
  EXPECT_EQ(html.find("<b>\x01"), std::string::npos);
  EXPECT_EQ(html.find('\x01'), std::string::npos);
}

TEST_F(RunFiguresTest, SeveralRunsOfOneModelAreOneModel) {
  const auto measured = [](int limit, const std::string& tokenizer) {
    return Json{{"perplexity", {{"test", 2.5}}},
                {"settings", {{"test", {{"limit", limit}, {"tokenizer", tokenizer}}}}}};
  };
  results("original", measured(0, "t"));
  fs::copy(run_, folder_.path() / "s", fs::copy_options::recursive);
  Report report = read_report({run_, folder_.path() / "s"});
  EXPECT_THAT(report.runs[1].remarks, IsEmpty());
  write_sealed_json(results_path(folder_.path() / "s", "original"), results_key("original"),
                    measured(7, "u"));
  report = read_report({run_, folder_.path() / "s"});
  EXPECT_THAT(report.runs[0].remarks, IsEmpty());
  EXPECT_THAT(report.runs[1].remarks,
              Contains("test: measured otherwise than in run r (limit 7, not 0, tokenizer \"u\", "
                       "not \"t\"): they do not compare"));
  std::vector<std::string> names;
  for (const ReportRow& row : report.rows) names.push_back(row.name);
  EXPECT_THAT(names, ElementsAre("original", "rtn-w4g128", "rtn-w3-symmetric", "rtn-w4g128 (s)",
                                 "rtn-w3-symmetric (s)"));
  EXPECT_THAT(rows_by_model(report), SizeIs(1));
  write_sealed_json(folder_.path() / "s" / "identity.json", "identity.json",
                    {{"model", "another"},
                     {"tokenizer", "t"},
                     {"calibration.text", ""},
                     {"blocks", 3},
                     {"keys", Json::object()},
                     {"config", ""}});
  report = read_report({run_, folder_.path() / "s"});
  EXPECT_THAT(report.runs[1].remarks,
              Contains("test: measured otherwise than in run r (limit 7, not 0): they do not "
                       "compare"))
      << "another model may have another tokenizer";
  EXPECT_EQ(rows_by_model(report)[1].first, "Llama-2-7b-hf (s)") << "called the same, and another";
  EXPECT_THROW(read_report({folder_.path()}), InputError);
}

TEST(JournalFactsTest, TimesAreChecked) {
  EXPECT_EQ(seconds_since_1970("1970-01-01T00:00:00.000Z"), 0);
  EXPECT_EQ(seconds_since_1970("2000-03-01T00:00:00.250Z"), 951868800.25);
  for (const char* text : {"", "now", "2026-13-01T00:00:00.000Z", "2026-02-30T00:00:00.000Z",
                           "2026-01-01T25:00:00.000Z", "2026-01-01T00:00:00.000",
                           "2026-01-01T00:00:00.000Z!", "-001-01-01T00:00:00.000Z"})
    EXPECT_FALSE(seconds_since_1970(text)) << text;
}

}  // namespace
}  // namespace roundhouse
