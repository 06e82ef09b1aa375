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

TEST(ReportTest, WorksWithoutAnyFigure) {
  Report report;
  report.rows.resize(1);
  EXPECT_THAT(to_html(report), Not(HasSubstr("<svg")));
  EXPECT_THAT(to_text(report), HasSubstr("recipe"));
}

}  // namespace
}  // namespace roundhouse
