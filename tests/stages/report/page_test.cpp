#include "stages/report/page.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "stages/report/figure_text.h"
#include "stages/report/template.h"
#include "tests/stages/report/example_report.h"

namespace roundhouse {
namespace {

using testing::HasSubstr;
using testing::IsSupersetOf;
using testing::Not;

constexpr const char* kHostile = "</script><img src=x onerror=\"alert('1')\">{{made}}";

TEST(TemplateTest, StringsAreEscapedAndWhatIsEmptyIsLeftOut) {
  EXPECT_THROW(embedded_file("nothing"), Error);
  EXPECT_THROW(render_template("plot.html", {{"title", 1}}, escape_html), Error)
      << "numbers are formatted before";
}

TEST(PageTest, NothingFromOutsideIsObeyed) {
  Report report = example_report();
  report.title = report.made = kHostile;
  report.texts = {kHostile};
  report.tasks = {kHostile};
  for (ReportRow& row : report.rows) {
    row.model = row.run = row.name = kHostile;
    if (!row.is_original()) row.method = row.variant = kHostile;
    row.perplexity = row.divergence = {{kHostile, 2}};
    row.tasks = {{kHostile, task_figures(kHostile, 0.5, 0.1)}};
    row.phases = {{kHostile, 1}};
    row.errors = {{0, {{kHostile, 0.1}}}};
  }
  ReportRun& run = report.runs[0];
  run.name = run.model = run.config = kHostile;
  run.missing = run.remarks = run.fallbacks = {kHostile};
  run.provenance = {{kHostile, kHostile}};
  run.spans = {
      {.first_rank = 0, .ranks = 1, .begin = 1, .end = 2, .kind = kHostile, .what = kHostile}};
  const std::string html = to_html(report);
  EXPECT_THAT(html, Not(HasSubstr("<img")));
  EXPECT_THAT(html, Not(HasSubstr("onerror=\"")));
  EXPECT_THAT(
      html,
      HasSubstr("&lt;/script&gt;&lt;img src=x onerror=&quot;alert(&#39;1&#39;)&quot;&gt;{{made}}"))
      << "and a template's marks in a value are text";
  std::size_t scripts = 0;
  for (std::size_t at = 0; (at = html.find("</script>", at)) != std::string::npos; ++at) ++scripts;
  EXPECT_EQ(scripts, 1u);
  const std::map<std::string, std::string> files = report_files(report, StandardErrors::kShown);
  EXPECT_THAT(files.at("results.md"), Not(HasSubstr("<img")));
}

TEST(PageTest, LoadsNothing) {
  const std::string html = to_html(example_report());
  for (const char* word : {"http:", "https:", "//fonts", "@import", "url("})
    EXPECT_THAT(html, Not(HasSubstr(word)));
  EXPECT_THAT(html, HasSubstr("Content-Security-Policy"));
}

TEST(PageTest, SaysWhatIsMissingAndWorksWithoutAnyFigure) {
  Report report;
  report.title = "nothing yet";
  EXPECT_THAT(to_html(report), HasSubstr("There is nothing to draw yet"));
  report.rows.resize(1);
  report.runs.resize(1);
  report.runs[0].missing = {"gptq-w4g128: 3 of 8 blocks are quantized"};
  const std::string html = to_html(report);
  EXPECT_THAT(html, HasSubstr("<h2>Not there yet</h2>"));
  EXPECT_THAT(html, HasSubstr("<li>gptq-w4g128: 3 of 8 blocks are quantized</li>"));
  EXPECT_THAT(html, HasSubstr("No block is quantized yet."));
  EXPECT_THAT(to_text(report), HasSubstr("  gptq-w4g128: 3 of 8 blocks are quantized\n"));
  EXPECT_THAT(to_html(example_report()), Not(HasSubstr("Not there yet")));
}

TEST(PageTest, FiguresThatAreNotFiniteOrHugeAreShort) {
  Report report = example_report();
  for (ReportRow& row : report.rows) {
    row.perplexity["test"] = 1e308;
    row.divergence = {{"test", INFINITY}};
    row.tasks["piqa"] = task_figures("piqa", 1e300, NAN);
    row.phases = {{"load", 1e300}, {"gram", NAN}};
    row.seconds = 1e300;
    row.relative_error = NAN;
    row.bits_per_weight = 1e300;
    row.errors = {{0, {{"q_proj", 1e308}, {"k_proj", NAN}, {"v_proj", -1}}}};
  }
  const std::string html = to_html(report);
  EXPECT_THAT(html, HasSubstr("1.00e+308"));
  EXPECT_THAT(html, Not(HasSubstr("00000000000")));
  EXPECT_THAT(html, Not(HasSubstr(">nan")));
  EXPECT_THAT(html, Not(HasSubstr("inf<")));
}

TEST(PageTest, HasTheSameTablesInEveryForm) {
  const std::map<std::string, std::string> files =
      report_files(example_report(), StandardErrors::kHidden);
  std::vector<std::string> names;
  for (const auto& [name, text] : files) names.push_back(name);
  EXPECT_THAT(names, IsSupersetOf({"index.html", "results.md", "results.tex", "results.csv",
                                   "widths.csv", "averages.csv", "figures.csv"}));
  EXPECT_THAT(files.at("results.md"), HasSubstr("## W4G128\n\n| model | method | piqa |"));
  EXPECT_THAT(files.at("results.md"), HasSubstr("In parentheses: what a paper has"));
  EXPECT_THAT(files.at("results.tex"), HasSubstr("% W2G128: "));
  EXPECT_THAT(files.at("index.html"),
              HasSubstr("<td data-value=\"78.07\">78.07<span class=\"error\"> ± 0.97</span><span "
                        "class=\"published\" title=\"SignRound\">78.07 <i>+0.00</i></span></td>"));
  EXPECT_THAT(print_tables(example_report(), "widths", "csv", StandardErrors::kHidden),
              HasSubstr("W4G128,Llama-2-7b-hf,gptq,77.50"));
  EXPECT_EQ(print_tables(Report(), "figures", "latex", StandardErrors::kHidden), "");
}

// What lies outside the blocks is no block, neither where a recipe includes it nor beside such a recipe.
TEST(PageTest, MapsOfErrorsEndWithTheNameOfTheLastUnit) {
  Report report = example_report();
  report.rows = {report_row("rtn", "rtn", 4, 2), report_row("with-head", "rtn", 4, 2)};
  for (ReportRow& row : report.rows) {
    row.blocks = 2;
    row.errors = {{0, {{"q_proj", 0.1}}}, {1, {{"q_proj", 0.2}}}};
  }
  EXPECT_THAT(to_html(report), HasSubstr("<span>block 0</span><span>block 1</span>"));
  report.rows[1].include = {"lm_head"};
  report.rows[1].errors[2] = {{"lm_head", 0.1}};
  const std::string html = to_html(report);
  EXPECT_THAT(html, HasSubstr("<span>block 0</span><span>head</span>"));
  EXPECT_THAT(html, Not(HasSubstr("<span>block 0</span><span>block")));
}

// 60 recipes of 80 blocks of 7 linears, on 8 ranks.
TEST(PageTest, IsBelowAMegabyteForSixtyRecipes) {
  Report report = example_report();
  report.rows.resize(1);
  for (int r = 0; r < 60; ++r) {
    ReportRow row =
        report_row("method-w" + std::to_string(2 + r % 3) + "g128-number-" + std::to_string(r),
                   "method", 2 + r % 3, 2 + 0.01 * r);
    row.variant = "variant " + std::to_string(r / 6);
    for (int t = 0; t < 11; ++t) {
      const std::string task = "task" + std::to_string(t);
      row.tasks[task] = task_figures(task, 0.5 + 0.001 * r, 0.01);
      row.tasks[task].normalized = Figure{0.6, 0.01};
      if (r == 0) report.tasks.push_back(task);
    }
    for (int block = 0; block < 80; ++block) {
      for (const char* linear :
           {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
            "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"})
        row.errors[block][linear] = 1e-3 * (1 + (block * 7919 + r * 104729 + linear[6] * 31) % 997);
      report.runs[0].spans.push_back({.first_rank = block / 20 * 2,
                                      .ranks = 2,
                                      .begin = 100.0 * r + block,
                                      .end = 100.0 * r + block + 1,
                                      .kind = "quantize",
                                      .what = row.name});
    }
    report.rows.push_back(std::move(row));
  }
  EXPECT_LT(to_html(report).size(), 1'000'000u);
}

}  // namespace
}  // namespace roundhouse
