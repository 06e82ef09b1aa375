#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "pipeline/commands.h"
#include "pipeline/job.h"
#include "pipeline/json_values.h"
#include "pipeline/run_files.h"

namespace roundhouse {
namespace {

// What an export depends on. Kept beside the export (FORMAT.json), so that a finished one is not written again.
std::string export_identity(Job& job, const Recipe& recipe, const ExportOptions& options) {
  return xxh3_hex(recipe_identity(job.config(), job.fingerprint(), recipe) + "\n" + options.format +
                  "\n" + std::string(options.dtype ? name_of(*options.dtype) : "source") + "\n" +
                  std::to_string(options.max_shard_bytes));
}

bool is_exported(const std::filesystem::path& directory, const std::filesystem::path& note,
                 const std::string& identity) {
  if (!std::filesystem::exists(directory) || !std::filesystem::exists(note)) return false;
  const auto json = nlohmann::json::parse(read_text_file(note), nullptr, false);
  if (text_in(json, "identity") != identity) return false;
  try {
    return verify_checkpoint(directory).empty();
  } catch (const InputError&) {
    return false;  // its list of hashes is gone or damaged: it is written again
  }
}

}  // namespace

void export_recipes(Job& job, const std::vector<std::string>& recipes,
                    const std::vector<std::string>& formats, const std::filesystem::path& output) {
  for (const std::string& name : recipes) {
    for (const std::string& format : formats) {
      const Recipe& recipe = job.recipe(name);
      const ExportOptions options = export_options(job.config(), format);
      check_exportable(recipe, job.model().config(), job.shape(), format);
      const std::filesystem::path directory = output / name / format;
      const std::filesystem::path note = output / name / (format + ".json");
      const std::string identity = export_identity(job, recipe, options);

      job.monitor().phase("export of " + name + " as " + format);
      const int there = job.first() && is_exported(directory, note, identity) ? 1 : 0;
      if (job.world().all_reduce_max(there) != 0) continue;
      export_checkpoint(job.model(), job.shape(), recipe, job.store(), options, directory,
                        job.backend(), job.world(), job.monitor());
      if (!job.first()) continue;
      write_text_atomically(note, nlohmann::json{{"identity", identity}}.dump() + "\n");
      job.monitor().event({{"event", "export"}, {"recipe", name}, {"format", format}});
      job.monitor().say("exported " + directory.string());
    }
  }
}

int export_command(LaunchSession& session, const ExportArguments& arguments) {
  const RunConfig config = read_run_config(arguments.run);
  Job job(session, config);
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
  if (recipes.empty()) throw InputError(arguments.run.string() + ": no recipe is complete yet");
  export_recipes(job, recipes, formats,
                 arguments.output.empty() ? arguments.run / "export" : arguments.output);
  return 0;
}

}  // namespace roundhouse
