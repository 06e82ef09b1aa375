#include "stages/report/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace roundhouse {
namespace {

using testing::HasSubstr;
using testing::Not;

Report example() {
  Report report;
  report.title = "A & <model>";
  report.rows.push_back({.name = "original",
                         .bits_per_weight = 16,
                         .relative_error = 0,
                         .perplexity = {{"test", 2.0}},
                         .seconds = 0,
                         .fallbacks = 0});
  report.rows.push_back({.name = "rtn-w2",
                         .bits_per_weight = 2.14,
                         .relative_error = 0.25,
                         .perplexity = {{"test", NAN}},
                         .seconds = 1.5,
                         .fallbacks = 2});
  return report;
}

TEST(ReportTest, TextHasOneLineARecipe) {
  const std::string text = to_text(example());
  EXPECT_THAT(text, HasSubstr("original         16.00            2.0000"));
  EXPECT_THAT(text, HasSubstr("not finite"));
}

TEST(ReportTest, MarkdownIsATable) {
  EXPECT_THAT(to_markdown(example()),
              HasSubstr("| rtn-w2 | 2.14 | not finite | 2.50e-01 | 1.5 | 2 |\n"));
}

TEST(ReportTest, BitsOfSparsePartsStandApart) {
  Report report = example();
  report.rows[1].sparse_bits_per_weight = 0.224;
  EXPECT_THAT(to_markdown(report), HasSubstr("| rtn-w2 | 2.14 + 0.22 | not finite |"));
  EXPECT_THAT(to_markdown(report), HasSubstr("| original | 16.00 |"));
}

TEST(ReportTest, CsvQuotesWhatNeedsIt) {
  Report report = example();
  report.rows[0].name = "a,\"b\"";
  EXPECT_THAT(to_csv(report), HasSubstr("\"a,\"\"b\"\"\",16.00,2.0000,,,0\r\n"));
}

TEST(ReportTest, HtmlEscapesAndDraws) {
  const std::string html = to_html(example());
  EXPECT_THAT(html, HasSubstr("A &amp; &lt;model&gt;"));
  EXPECT_THAT(html, HasSubstr("<svg"));
  EXPECT_THAT(html, Not(HasSubstr("nan")));
  EXPECT_THAT(html, Not(HasSubstr("http")));  // nothing is loaded from outside
}

TEST(ReportTest, TasksHaveColumnsAndAnAverage) {
  Report report = example();
  report.rows[0].accuracy = {{"piqa", {0.7807, 0.01}}, {"rte", {0.5, 0.03}}};
  report.rows[1].accuracy = {{"piqa", {0.5, 0.01}}};
  report.rows[1].divergence = {{"test", 0.0123}};
  const std::string csv = to_csv(report);
  EXPECT_THAT(csv, HasSubstr("recipe,bits/weight,perplexity test,KL test,piqa %,rte %,average %,"));
  EXPECT_THAT(csv, HasSubstr("original,16.00,2.0000,,78.07,50.00,64.03,,,0\r\n"));
  // One task is missing, so there is no average.
  EXPECT_THAT(csv, HasSubstr("rtn-w2,2.14,not finite,1.23e-02,50.00,,,2.50e-01,1.5,2\r\n"));
}

TEST(ReportTest, LatexIsATableOfBooktabs) {
  Report report = example();
  report.rows[0].name = "a_b & 5%";
  const std::string latex = to_latex(report);
  EXPECT_THAT(latex, HasSubstr("\\begin{tabular}{lrrrrr}\n\\toprule\nrecipe & bits/weight"));
  EXPECT_THAT(latex, HasSubstr("a\\_b \\& 5\\% & 16.00 & 2.0000 &  &  & 0 \\\\\n"));
}

TEST(ReportTest, ThePlotRingsWhatNoneBeats) {
  Report report;
  const auto add = [&](const std::string& name, const std::string& method, double bits,
                       double perplexity) {
    ReportRow row;
    row.name = name;
    row.method = method;
    row.bits_per_weight = bits;
    row.perplexity = {{"test", perplexity}};
    report.rows.push_back(row);
  };
  add("original", "", 16, 1);
  add("one", "rtn", 2, 9);
  EXPECT_EQ(plot(report, "test"), "");
  add("<two>", "rtn", 4, 3);
  add("worse", "gptq", 4, 4);
  add("broken", "gptq", 3, NAN);
  const std::string svg = plot(report, "test");
  const auto count = [&](const std::string& what) {
    std::size_t found = 0;
    for (std::size_t at = 0; (at = svg.find(what, at)) != std::string::npos; ++at) ++found;
    return found;
  };
  EXPECT_EQ(count("<title>"), 3u);
  EXPECT_EQ(count("r=\"8.5\""), 2u);
  EXPECT_EQ(count("stroke-width"), 2u);  // a line a method
  EXPECT_THAT(svg, HasSubstr("<title>&lt;two&gt;: 4.00 bits, 3.0000</title>"));
  EXPECT_EQ(plot(report, "other"), "");
}

TEST(ReportTest, WorksWithoutAnyFigure) {
  Report report;
  report.rows.resize(1);
  EXPECT_THAT(to_html(report), Not(HasSubstr("<svg")));
  EXPECT_THAT(to_text(report), HasSubstr("recipe"));
}

}  // namespace
}  // namespace roundhouse
