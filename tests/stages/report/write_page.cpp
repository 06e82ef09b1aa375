// Writes a page that has everything: two models, fallbacks, hostile names, figures that are not finite. For page_in_browser.py.
#include <cstdio>

#include "base/file.h"
#include "stages/report/page.h"
#include "tests/stages/report/example_report.h"

int main(int argc, char** argv) {
  using namespace roundhouse;
  if (argc != 2) return 2;
  Report report = example_report();
  report.rows.push_back(report_row("rtn-w2g128", "rtn", 2, 10.5));
  report.rows[3].fallbacks = 1;
  const std::string hostile =
      "<script>alert(1)</"
      "script>-a-name-without-any-place-to-break-it-that-goes-on-and-on-and-on-and-on";
  const std::size_t own = report.rows.size();
  for (std::size_t i = 0; i < own; ++i) {
    ReportRow row = report.rows[i];
    row.model = hostile;
    row.variant += row.is_original() ? "" : " " + hostile;
    report.rows.push_back(row);
  }
  for (ReportRow& row : report.rows) {
    if (row.is_original()) continue;
    row.divergence = {{"test", 0.01 * row.bits}};
    row.phases = {{"load", 1}, {"gram", 20}, {"solve", 3}, {hostile, 0.5}};
    row.seconds = 24.5;
    for (int block = 0; block < 32; ++block) {
      for (const char* linear : {"self_attn.q_proj", "mlp.down_proj"})
        row.errors[block][linear] = 1e-3 * (block + 1) / row.bits;
    }
  }
  ReportRun& run = report.runs[0];
  run.missing = {"gptq-w3g128: 3 of 32 blocks are quantized; not measured: test"};
  run.fallbacks = {"gptq-w2g128, block 3, mlp.down_proj: damping was raised 2 times, to 0.04"};
  run.remarks = {hostile};
  run.provenance = {{"model's hash", "0123456789abcdef0123456789abcdef"}, {"hosts", hostile}};
  run.config = "model: /models/" + hostile + hostile + "\nrun: a\n";
  for (int i = 0; i < 40; ++i) {
    run.spans.push_back({.first_rank = i % 2,
                         .ranks = 1,
                         .begin = 10.0 * i,
                         .end = 10.0 * i + 8,
                         .kind = i % 4 ? "quantize" : "evaluate",
                         .what = "unit"});
  }
  write_text_atomically(argv[1], to_html(report));
  return 0;
}
