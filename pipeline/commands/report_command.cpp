#include <cstdio>

#include "base/error.h"
#include "base/file.h"
#include "base/quote.h"
#include "pipeline/commands/commands.h"
#include "pipeline/run/run_folder.h"
#include "pipeline/steps/report_step.h"
#include "pipeline/steps/run_figures.h"
#include "stages/report/page.h"
#include "stages/report/timeline.h"

namespace roundhouse {

int report_command(const ReportArguments& arguments) {
  const StandardErrors errors = arguments.errors ? StandardErrors::kShown : StandardErrors::kHidden;
  const std::vector<std::filesystem::path>& runs = arguments.runs;
  for (const std::filesystem::path& run : runs) require_run_folder(run);
  if (!arguments.table.empty()) {
    const std::string text =
        print_tables(read_report(runs), arguments.table, arguments.form, errors);
    if (text.empty())
      throw InputError("there are no figures for a table " + in_quotes(arguments.table) + " yet");
    std::fwrite(text.data(), 1, text.size(), stdout);
  } else if (runs.size() == 1 && arguments.output.empty()) {
    report_run(runs[0], true, errors);
  } else {
    report_runs(runs, arguments.output.empty() ? "report" : arguments.output, errors);
  }
  return 0;
}

int timeline_command(const TimelineArguments& arguments) {
  require_run_folder(arguments.run);
  const ReportRun run = read_run_figures(arguments.run).run;
  if (run.spans.empty())
    throw InputError(arguments.run.string() + ": the journal has no finished work yet");
  const std::filesystem::path file =
      arguments.output.empty() ? arguments.run / "timeline.json" : arguments.output;
  write_text_atomically(file, to_trace(run));
  std::printf("timeline: %s (open it in ui.perfetto.dev)\n", file.string().c_str());
  return 0;
}

}  // namespace roundhouse
