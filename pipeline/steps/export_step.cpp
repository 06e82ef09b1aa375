#include "pipeline/steps/export_step.h"

#include <chrono>
#include <optional>

#include <fmt/format.h>

#include "base/hash.h"
#include "base/quote.h"
#include "comm/together.h"
#include "pipeline/run/export_note.h"
#include "pipeline/run/output_guard.h"
#include "pipeline/run/whole_records.h"
#include "stages/export/compare.h"
#include "stages/export/sha256sums.h"
#include "stages/export/side_files.h"

namespace roundhouse {
namespace {

// What an export depends on: its settings, and the files that are copied.
std::string export_identity(Job& job, const Recipe& recipe, const std::string& format) {
  std::string text = export_settings(job.config(), job.inputs(), recipe, format);
  for (const std::string& file : side_files(job.config().model).carried) {
    text += file + " " + xxh3_hex_of_file(job.config().model / file) + "\n";
  }
  return xxh3_hex(text);
}

// Beside an export lies a note of what it was made from; with it a finished one is not written again.
struct Export {
  std::string key;  // for messages: "export/NAME/FORMAT", wherever it is
  std::filesystem::path directory;
  std::string identity;  // export_identity()
};

// Whether it is there, whole, and made of this model. Says what is damaged.
bool is_exported(Job& job, const Export& wanted, bool& ours) {
  const ExportCheck check = check_export(wanted.directory, wanted.key, Hashing::kUnlessUntouched,
                                         [&] { job.monitor().tick(); });
  ours = check.noted;
  if (check.faults.empty()) {
    return check.identity == wanted.identity && check.model == job.model_identity().content();
  }
  // A folder with neither is somebody else's.
  const bool begun = check.noted || std::filesystem::exists(wanted.directory / kSums);
  if (begun) job.report_damage(wanted.key, check.faults.front());
  return false;
}

// The word of the group's rank 0 on an export of all its ranks.
bool is_exported_for_all(Job& job, Communicator& group, const Export& wanted, bool& ours) {
  const bool there = group.rank() == 0 && is_exported(job, wanted, ours);
  const Watchdog::Waiting waiting(&job.monitor().watchdog());
  return group.all_reduce_max(there ? 1 : 0) != 0;
}

}  // namespace

std::string export_settings(const RunConfig& config, const RunInputs& inputs, const Recipe& recipe,
                            const std::string& format) {
  const ExportOptions options = export_options(config, format);
  return fmt::format("{}\n{}\n{}\n{}\n", recipe_identity(config, inputs, recipe), options.format,
                     options.dtype ? name_of(*options.dtype) : "source", options.max_shard_bytes);
}

bool export_recipes(Job& job, Communicator& group, const std::vector<std::string>& recipes,
                    const std::vector<std::string>& formats, const std::filesystem::path& output) {
  for (const std::string& name : recipes) {
    for (const std::string& format : formats) {
      const Recipe& recipe = job.recipe(name);
      ExportOptions options = export_options(job.config(), format);
      check_exportable(recipe, job.decoder(), job.blocks(), format);
      const Export wanted{.key = "export/" + name + "/" + format,
                          .directory = output / name / format,
                          .identity = export_identity(job, recipe, format)};

      if (job.stop_requested(group)) return false;
      job.monitor().phase("export of " + name + " as " + format);
      const auto start = std::chrono::steady_clock::now();
      std::optional<OutputGuard> guard;
      if (group.rank() == 0) {
        guard.emplace(
            wanted.directory, [&](const std::string& line) { job.monitor().say(line); },
            [&] {
              job.monitor().tick();
              return !job.monitor().stop_requested();
            });
      }
      if (is_exported_for_all(job, group, wanted, options.replace)) continue;
      job.check_content(group, block_keys(name, job.recipe(name).units(job.blocks())));
      job.monitor().phase("export of " + name + " as " + format);
      if (!export_checkpoint(job.model(), job.decoder(), recipe, job.store(), options,
                             wanted.directory, group, job.monitor())) {
        return false;
      }
      job.model_identity().join(group);
      if (group.rank() != 0) continue;
      write_export_note(
          wanted.directory, wanted.key,
          {.identity = wanted.identity,
           .settings = xxh3_hex(export_settings(job.config(), job.inputs(), recipe, format)),
           .model = job.model_identity().content()});
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
      job.monitor().event({{"event", "export"},
                           {"recipe", name},
                           {"format", format},
                           {"seconds", took.count()},
                           {"ranks", group.size()}});
      job.monitor().say("exported " + wanted.directory.string());
    }
  }
  return true;
}

std::optional<int> check_exports(Job& job, Communicator& group,
                                 const std::vector<std::string>& recipes,
                                 const std::vector<std::string>& formats,
                                 const std::filesystem::path& output) {
  int wrong = 0;
  for (const std::string& name : recipes) {
    for (const std::string& format : formats) {
      const std::filesystem::path directory = output / name / format;
      std::vector<std::string> faults;
      const bool there = share(group, std::filesystem::exists(directory) ? "there" : "") != "";
      if (!there && !export_recipes(job, group, {name}, {format}, output)) return std::nullopt;
      if (job.stop_requested(group)) return std::nullopt;
      job.check_content(group, block_keys(name, job.recipe(name).units(job.blocks())));
      job.monitor().phase("checking the export of " + name + " as " + format);
      together(group, [&] {
        if (group.rank() == 0) faults = verify_checkpoint(directory, [&] { job.monitor().tick(); });
      });
      const auto compared =
          compare_export(job.model(), job.decoder(), job.recipe(name), job.store(),
                         export_options(job.config(), format), directory, group, job.monitor());
      if (!compared) return std::nullopt;
      job.model_identity().join(group);
      faults.insert(faults.end(), compared->begin(), compared->end());
      wrong += group.all_reduce_max(faults.empty() ? 0 : 1) > 0 ? 1 : 0;
      if (group.rank() != 0) continue;
      for (const std::string& fault : faults)
        job.monitor().say(printable_line(directory.string() + ": " + fault));
      if (faults.empty())
        job.monitor().say("checked " + directory.string() + ": holds what the run made");
    }
  }
  return wrong;
}

}  // namespace roundhouse
