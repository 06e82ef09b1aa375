#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <optional>

#include "base/error.h"
#include "base/exit_code.h"
#include "base/file.h"
#include "base/hash.h"
#include "pipeline/commands/commands.h"
#include "pipeline/job.h"
#include "pipeline/run/output_guard.h"
#include "pipeline/run/run_files.h"
#include "pipeline/run/sealed_json.h"
#include "pipeline/run/whole_records.h"
#include "stages/export/engines.h"
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
  const bool begun = check.noted || std::filesystem::exists(wanted.directory / "SHA256SUMS");
  if (begun) job.report_damage(wanted.key, check.faults.front());
  return false;
}

// The word of the group's rank 0 on an export of all its ranks.
bool is_exported_for_all(Job& job, Communicator& group, const Export& wanted, bool& ours) {
  const bool there = group.rank() == 0 && is_exported(job, wanted, ours);
  const Watchdog::Waiting waiting(&job.monitor().watchdog());
  return group.all_reduce_max(there ? 1 : 0) != 0;
}

std::int64_t nanoseconds(const timespec& time) {
  return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

// Lengths of the files of an export, by name.
nlohmann::json lengths_of_files(const std::filesystem::path& directory) {
  nlohmann::json lengths = nlohmann::json::object();
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory)) {
    if (entry.is_regular_file())
      lengths[entry.path().lexically_relative(directory).generic_string()] = entry.file_size();
  }
  return lengths;
}

// No file was added, lost, cut or changed since the note was written.
bool is_untouched(const std::filesystem::path& directory, const std::filesystem::path& note,
                  const nlohmann::json& lengths) {
  struct stat facts {};
  if (!lengths.is_object() || ::stat(note.c_str(), &facts) != 0) return false;
  const std::int64_t noted = nanoseconds(facts.st_ctim);
  if (lengths_of_files(directory) != lengths) return false;
  return std::ranges::all_of(lengths.items(), [&](const auto& item) {
    return ::stat((directory / item.key()).c_str(), &facts) == 0 &&
           nanoseconds(facts.st_ctim) <= noted;
  });
}

}  // namespace

std::string export_settings(const RunConfig& config, const RunInputs& inputs, const Recipe& recipe,
                            const std::string& format) {
  const ExportOptions options = export_options(config, format);
  return recipe_identity(config, inputs, recipe) + "\n" + options.format + "\n" +
         std::string(options.dtype ? name_of(*options.dtype) : "source") + "\n" +
         std::to_string(options.max_shard_bytes) + "\n";
}

std::filesystem::path export_note_path(const std::filesystem::path& directory) {
  return directory.parent_path() / (directory.filename().string() + ".json");
}

ExportCheck check_export(const std::filesystem::path& directory, const std::string& key,
                         Hashing hashing, const std::function<void()>& tick) {
  ExportCheck check;
  (void)bytes_of_file(directory /
                      "SHA256SUMS");  // it may just have been renamed on another machine
  if (!std::filesystem::is_directory(directory)) check.faults.push_back("missing");
  const std::filesystem::path note = export_note_path(directory);
  const SealedJson sealed = read_sealed_json(note, key);
  const auto text = [&](const char* name) { return sealed.object->value(name, std::string()); };
  if (!sealed.object) {
    check.faults.push_back(note.filename().string() + ": " + sealed.why);
  } else {
    check.noted = true;
    check.identity = text("identity");
    check.settings = text("settings");
    check.model = text("model");
  }
  if (!std::filesystem::is_directory(directory)) return check;
  const std::filesystem::path sums = directory / "SHA256SUMS";
  if (sealed.object && std::filesystem::is_regular_file(sums) &&
      sha256_hex_of_file(sums) != text("sums")) {
    check.faults.push_back("SHA256SUMS: damaged");
  }
  if (hashing == Hashing::kUnlessUntouched && check.faults.empty() &&
      is_untouched(directory, note, sealed.object->value("bytes", nlohmann::json()))) {
    return check;
  }
  for (std::string& fault : verify_checkpoint(directory, tick))
    check.faults.push_back(std::move(fault));
  if (hashing == Hashing::kUnlessUntouched && check.faults.empty()) {
    ::utimensat(AT_FDCWD, note.c_str(), nullptr, 0);  // a hint: the next look need not hash again
  }
  return check;
}

bool export_recipes(Job& job, Communicator& group, const std::vector<std::string>& recipes,
                    const std::vector<std::string>& formats, const std::filesystem::path& output) {
  for (const std::string& name : recipes) {
    for (const std::string& format : formats) {
      const Recipe& recipe = job.recipe(name);
      ExportOptions options = export_options(job.config(), format);
      check_exportable(recipe, job.model().config(), job.shape(), format);
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
      job.check_content(group, block_keys(name, job.blocks()));
      job.monitor().phase("export of " + name + " as " + format);
      if (!export_checkpoint(job.model(), job.shape(), recipe, job.store(), options,
                             wanted.directory, job.backend(), group, job.monitor())) {
        return false;
      }
      job.model_identity().join(group);
      if (group.rank() != 0) continue;
      write_sealed_json(
          export_note_path(wanted.directory), wanted.key,
          {{"identity", wanted.identity},
           {"settings", xxh3_hex(export_settings(job.config(), job.inputs(), recipe, format))},
           {"model", job.model_identity().content()},
           {"sums", sha256_hex_of_file(wanted.directory / "SHA256SUMS")},
           {"bytes", lengths_of_files(wanted.directory)}});
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
      check_exportable(job.recipe(name), job.model().config(), job.shape(), format);
      check_served(job.recipe(name), format, engines);
    }
  }
  if (recipes.empty()) throw InputError(arguments.run.string() + ": no recipe is complete yet");
  const bool done =
      export_recipes(job, job.world(), recipes, formats,
                     arguments.output.empty() ? arguments.run / "export" : arguments.output);
  return done ? kExitDone : kExitStopped;
}

}  // namespace roundhouse
