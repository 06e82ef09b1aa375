#include <algorithm>
#include <optional>

#include "base/error.h"
#include "base/exit_code.h"
#include "base/quote.h"
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
  const bool all = arguments.recipes.empty();
  const std::vector<std::string> complete =
      all ? complete_recipes_said(job) : complete_recipes(job);
  const std::vector<std::string> recipes = all ? complete : arguments.recipes;
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
  std::error_code ignored;
  if (std::filesystem::equivalent(output, config.model, ignored)) {
    throw InputError("--output " + in_quotes(output.string()) +
                     " is the folder of the model: choose another one");
  }
  if (!arguments.check) {
    return export_recipes(job, job.world(), recipes, formats, output) ? kExitDone : kExitStopped;
  }
  const std::optional<int> wrong = check_exports(job, job.world(), recipes, formats, output);
  if (!wrong) return kExitStopped;
  // An export whose recipe is not whole any more was not checked, and is not fine for that.
  const bool unchecked = std::ranges::any_of(job.recipe_names(), [&](const std::string& name) {
    return all && std::ranges::find(complete, name) == complete.end() &&
           std::filesystem::exists(output / name, ignored);
  });
  return *wrong == 0 && !unchecked ? kExitDone : kExitFailed;
}

}  // namespace roundhouse
