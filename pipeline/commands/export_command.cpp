#include <algorithm>
#include <optional>

#include "base/error.h"
#include "base/exit_code.h"
#include "pipeline/commands/commands.h"
#include "pipeline/job.h"
#include "pipeline/steps/export_step.h"
#include "stages/export/compare.h"
#include "stages/export/engines.h"
#include "stages/export/export.h"

namespace roundhouse {

int export_command(LaunchSession& session, const ExportArguments& arguments) {
  const RunConfig config = agreed_config(session, [&] { return read_run_config(arguments.run); });
  Job job(session, config, {}, Job::Access::kReads);
  std::vector<std::string> formats = arguments.formats;
  if (formats.empty()) formats = config.export_formats;
  if (formats.empty()) formats = {"compressed-tensors"};
  const std::vector<std::string> complete = complete_recipes(job);
  std::vector<std::string> recipes = arguments.recipes.empty() ? complete : arguments.recipes;
  for (const std::string& name : recipes) {
    (void)job.recipe(name);
    if (std::find(complete.begin(), complete.end(), name) == complete.end()) {
      throw InputError(name + " is not complete: `roundhouse run` goes on with it");
    }
  }
  const std::vector<std::string>& engines =
      arguments.engines.empty() ? config.export_for : arguments.engines;
  for (const std::string& name : recipes) {
    for (const std::string& format : formats) {
      check_exportable(job.recipe(name), job.decoder(), job.blocks(), format);
      check_model_exportable(job.model(), job.recipe(name), format);
      check_served(job.recipe(name), job.decoder(), job.blocks(), format, engines);
    }
  }
  if (recipes.empty()) throw InputError(arguments.run.string() + ": no recipe is complete yet");
  const std::filesystem::path output =
      arguments.output.empty() ? arguments.run / "export" : arguments.output;
  if (!arguments.check) {
    return export_recipes(job, job.world(), recipes, formats, output) ? kExitDone : kExitStopped;
  }
  const std::optional<int> wrong = check_exports(job, job.world(), recipes, formats, output);
  if (!wrong) return kExitStopped;
  return *wrong == 0 ? kExitDone : kExitFailed;
}

}  // namespace roundhouse
