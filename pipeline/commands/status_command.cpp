// Looks at a run from outside: takes no lock, changes nothing, and reads only what is written as a
// whole (records by their names, the journal line by line), so it may run beside the job.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <optional>
#include <thread>

#include <fmt/format.h>

#include "base/counted.h"
#include "base/error.h"
#include "base/quote.h"
#include "model/block/model_units.h"
#include "model/model_config.h"
#include "pipeline/commands/commands.h"
#include "pipeline/json_values.h"
#include "pipeline/run/hdf5_store.h"
#include "pipeline/run/lease.h"
#include "pipeline/run/results.h"
#include "pipeline/run/run_files.h"
#include "pipeline/run/run_folder.h"
#include "pipeline/run/sealed_json.h"
#include "pipeline/schedule/recipe_failure.h"
#include "pipeline/watch/progress_line.h"
#include "pipeline/watch/time_left.h"
#include "pipeline/watch/whereabouts.h"
#include "stages/store/run_store.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

// 0: not known (the model is gone, and the job has not said).
int blocks_of(const RunConfig& config, const std::vector<Json>& journal) {
  try {
    return static_cast<int>(read_model_config(config.model).blocks);
  } catch (const InputError&) {
  }
  int blocks = 0;
  for (const Json& event : journal) {
    if (text_in(event, "event") == "block" && !event.contains("outside"))
      blocks = std::max(blocks, integer_in(event, "block", 0) + 1);
  }
  return blocks;
}

std::vector<bool> blocks_done(const fs::path& run, const std::string& recipe, int blocks) {
  std::vector<bool> done;
  std::error_code ignored;
  for (int block = 0; block < blocks; ++block)
    done.push_back(fs::exists(run / (block_key(recipe, block) + ".h5"), ignored));
  return done;
}

Json results_of(const fs::path& run, const std::string& recipe) {
  return read_results(run, recipe).object.value_or(Json::object());
}

// "test 12.3456, wikitext2 8.9012, piqa 78.07 %"
std::string figures_of(const Json& results) {
  std::string text;
  const Json figures = results.value("perplexity", Json::object());
  for (const auto& [name, value] : figures.items()) {
    text +=
        fmt::format("{}{} {}", text.empty() ? "" : ", ", printable_line(name),
                    value.is_number() ? fmt::format("{:.4f}", value.get<double>()) : "not finite");
  }
  const Json tasks = results.value("tasks", Json::object());
  for (const auto& [name, task] : tasks.items()) {
    if (!task.is_object() || !task.contains("acc")) continue;
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", printable_line(name),
                        task["acc"].is_number()
                            ? fmt::format("{:.2f} %", 100 * task["acc"].get<double>())
                            : "not finite");
  }
  return text;
}

// What the journal says of the job that ran last.
struct LastJob {
  std::string device;
  int ranks = 0;
  int pipeline = 1, lanes = 1;
  Json lane_of;             // by recipe's name
  Json waves;               // lists of names
  double unit_seconds = 0;  // mean of its units, each on one team
  int units = 0;
  std::optional<double> left;  // seconds, by TimeLeft
  Json last_event;
};

// Of a journal's "time", as seconds since 1970; 0: it is none.
double seconds_of(const std::string& time) {
  std::tm date{};
  double seconds = 0;
  if (std::sscanf(time.c_str(), "%d-%d-%dT%d:%d:%lf", &date.tm_year, &date.tm_mon, &date.tm_mday,
                  &date.tm_hour, &date.tm_min, &seconds) != 6) {
    return 0;
  }
  date.tm_year -= 1900;
  date.tm_mon -= 1;
  return static_cast<double>(::timegm(&date)) + seconds;
}

LastJob last_job(const std::vector<Json>& journal) {
  LastJob job;
  TimeLeft time_left;
  double planned = 0;
  for (const Json& event : journal) {
    time_left.finished(event);
    const std::string kind = text_in(event, "event");
    if (kind == "quantize") {
      job = {};
      job.device = text_in(event, "device");
      job.ranks = integer_in(event, "ranks", 0);
      const Json mesh = event.value("mesh", Json::object());
      job.pipeline = std::max(1, integer_in(mesh, "pipeline", 1));
      job.lanes = std::max(1, integer_in(mesh, "lanes", 1));
      if (mesh.is_object()) {
        job.lane_of = mesh.value("lane_of", Json::object());
        if (const Json waves = mesh.value("waves", Json::array()); waves.is_array())
          job.waves = waves;
      }
      time_left = TimeLeft();
    } else if (kind == "plan") {
      time_left = TimeLeft(event.value("work", Json::object()));
      planned = seconds_of(text_in(event, "time"));
    } else if (kind == "block") {
      job.unit_seconds += number_in(event, "seconds");
      ++job.units;
    }
    if (kind != "end") job.last_event = event;  // it repeats the one before, for batch scripts
  }
  if (job.units > 0) job.unit_seconds /= job.units;
  job.left = time_left.seconds(seconds_of(text_in(job.last_event, "time")) - planned);
  return job;
}

std::string describe(const Json& event) {
  std::string text = text_in(event, "time") + " " + text_in(event, "event");
  for (const char* key : {"recipe", "format", "name"}) {
    if (event.contains(key) && event[key].is_string()) text += " " + event[key].get<std::string>();
  }
  if (const std::vector<std::string> outside = texts_in(event, "outside"); !outside.empty()) {
    text += " " + unit_name(0, outside);
  } else if (event.contains("block") && event["block"].is_number()) {
    text += " " + event["block"].dump();
  }
  return text;
}

// "14:32 UTC"; days ahead with the date.
std::string clock_time(double seconds) {
  const auto whole = static_cast<std::time_t>(seconds);
  std::tm date{};
  ::gmtime_r(&whole, &date);
  char text[32] = "";
  const bool soon = seconds - static_cast<double>(std::time(nullptr)) < 86400;
  (void)std::strftime(text, sizeof text, soon ? "%H:%M UTC" : "%Y-%m-%d %H:%M UTC", &date);
  return text;
}

// What each stage is at, by what is committed.
std::string describe(std::vector<RecipeProgress> recipes, const LastJob& job) {
  if (job.lanes > 1) {
    for (RecipeProgress& recipe : recipes)
      recipe.lane = integer_in(job.lane_of, recipe.name.c_str(), -1);
    std::ranges::stable_partition(recipes, [](const auto& recipe) { return recipe.lane < 0; });
  }
  for (std::size_t wave = 0; wave < job.waves.size(); ++wave) {
    for (RecipeProgress& recipe : recipes) {
      const Json& names = job.waves[wave];
      if (std::ranges::find(names, Json(recipe.name)) != names.end())
        recipe.wave = static_cast<int>(wave);
    }
  }
  const std::vector<StageProgress> all = whereabouts(recipes, job.pipeline, job.lanes);
  std::string text;
  for (std::size_t stage = 0; stage < all.size(); ++stage) {
    const StageProgress& at = all[stage];
    if (at.recipe.empty()) continue;
    text +=
        fmt::format("{}: {}{} {}{}{}\n", all.size() > 1 ? fmt::format("stage {}", stage) : "now",
                    at.waits ? "waits for " : "", at.recipe, at.unit,
                    at.next.empty() ? "" : ", next ", at.next);
  }
  return text;
}

struct Picture {
  std::string text;
  bool done;  // the last job said so
};

Picture look(const fs::path& run) {
  const RunConfig config = read_run_config(run);
  const std::vector<Json> journal = read_journal(run);
  const int blocks = blocks_of(config, journal);
  const LastJob job = last_job(journal);

  std::string text = printable_line(run.string() + ": " + config.model.string());
  if (job.ranks > 0)
    text += fmt::format(", {}, {}", counted(job.ranks, "rank"), printable_line(job.device));
  text += "\n";

  Hdf5Store store(run);
  std::size_t width = std::string(kOriginal).size();
  for (const Recipe& recipe : config.recipes) width = std::max(width, recipe.name.size());
  std::vector<RecipeProgress> progress;
  for (const Recipe& recipe : config.recipes) {
    progress.push_back(
        {.name = recipe.name,
         .in_order = recipe.needs.streams(),
         .done = blocks_done(run, recipe.name, blocks > 0 ? recipe.units(blocks) : 0),
         .include = blocks > 0 ? recipe.include : std::vector<std::string>()});
    const auto done = std::ranges::count(progress.back().done, true);
    std::error_code ignored;
    const bool undecided =
        recipe.needs.decision && !fs::exists(run / (decision_key(recipe.name) + ".h5"), ignored);
    const std::optional<RecipeFailure> failure = find_failure(recipe.name, store);
    progress.back().failed = failure.has_value();
    const std::string note =
        failure     ? "failed at " + failure->place() + ": " + printable_line(failure->reason)
        : undecided ? "not decided yet  "
                    : "";
    text += fmt::format("  {:<{}}  {:>3}/{} {}  {}{}\n", recipe.name, width, done,
                        blocks > 0 ? std::to_string(recipe.units(blocks)) : "?",
                        recipe.include.empty() ? "blocks" : "units ", note,
                        failure ? "" : figures_of(results_of(run, recipe.name)));
  }
  if (const std::string original = figures_of(results_of(run, kOriginal)); !original.empty()) {
    text += fmt::format("  {:<{}}  {:14}  {}\n", kOriginal, width, "", original);
  }
  const std::string last = text_in(job.last_event, "event");
  const bool at_work = is_held(run);
  if (job.units > 0) {
    text += fmt::format("{} a block", format_duration(job.unit_seconds));
    if (at_work && last != "done" && job.left && *job.left > 0) {
      text += fmt::format(", {} left, done about {}", format_duration(*job.left),
                          clock_time(seconds_of(text_in(job.last_event, "time")) + *job.left));
    }
    text += "\n";
  }
  if (at_work && job.ranks > 0 && last != "done" && last != "stopped")
    text += describe(progress, job);
  if (!at_work && last != "done")
    text += "no job is at work here: `roundhouse run CONFIG` goes on\n";
  if (!job.last_event.is_null()) text += "last: " + printable_line(describe(job.last_event)) + "\n";
  return {text, last == "done"};
}

}  // namespace

int status_command(const fs::path& run, bool follow) {
  require_run_folder(run);
  for (;;) {
    const Picture picture = look(run);
    const bool redraw = follow && ::isatty(STDOUT_FILENO) == 1;
    fmt::print("{}{}", redraw ? "\x1b[H\x1b[J" : "", picture.text);
    std::fflush(stdout);
    if (!follow || picture.done) return 0;
    std::this_thread::sleep_for(std::chrono::seconds(2));
  }
}

}  // namespace roundhouse
