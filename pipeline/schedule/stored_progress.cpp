#include "pipeline/schedule/stored_progress.h"

#include <algorithm>
#include <charconv>
#include <set>

#include <fmt/format.h>

#include "base/error.h"
#include "comm/together.h"

namespace roundhouse {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::string_view kRecipes = "recipes/";
constexpr std::string_view kProgress = "/progress/block-";
constexpr std::string_view kStep = "/step-";
constexpr const char* kOrigin = "origin";

double seconds_between(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

std::string folder_of(const std::string& recipe, int block) {
  return fmt::format("{}{}{}{:04}", kRecipes, recipe, kProgress, block);
}

// The number behind `name` in a key; -1: there is none.
int number_behind(std::string_view name, const std::string& key) {
  const std::size_t at = key.rfind(name);
  int number = -1;
  if (at != key.npos)
    std::from_chars(key.data() + at + name.size(), key.data() + key.size(), number);
  return number;
}

}  // namespace

StoredProgress::StoredProgress(const std::string& recipe, int block, RunStore& store,
                               Communicator& team, Monitor& monitor, SnapshotTiming& timing,
                               std::function<nlohmann::json()> origin)
    : folder_(folder_of(recipe, block)),
      block_(block),
      store_(store),
      team_(team),
      monitor_(monitor),
      timing_(timing),
      origin_(std::move(origin)) {
  timing_.restart();
}

std::string StoredProgress::key(int step, const std::string& part) const {
  return fmt::format("{}{}{:06}/{}", folder_, kStep, step, part);
}

std::optional<int> StoredProgress::newest(const std::vector<std::string>& parts) {
  std::set<int> listed;
  if (team_.rank() == 0) {
    for (const std::string& found : store_.keys(folder_)) {
      if (const int step = number_behind(kStep, found); step > 0) listed.insert(step);
    }
  }
  auto steps =
      nlohmann::json::parse(share(team_, nlohmann::json(listed).dump())).get<std::vector<int>>();
  std::ranges::reverse(steps);
  for (const int step : steps) {
    std::vector<std::string> keys;
    for (const std::string& part : parts) keys.push_back(key(step, part));
    if (!all_whole(keys, store_, team_)) continue;
    std::uint8_t ours = 0;
    if (team_.rank() == 0) {
      const std::optional<nlohmann::json> said = store_.attributes(keys.front());
      ours = said && said->value(kOrigin, nlohmann::json()) == origin_() ? 1 : 0;
    }
    team_.broadcast(std::as_writable_bytes(std::span(&ours, 1)), 0);
    if (ours == 0) continue;
    if (team_.rank() == 0) {
      monitor_.event({{"event", "block resumed"}, {"block", block_}, {"step", step}});
    }
    return step;
  }
  return std::nullopt;
}

Record StoredProgress::load(int step, const std::string& part) {
  std::optional<Record> record = store_.load(key(step, part));
  if (record) return std::move(*record);
  throw Error(key(step, part) +
              ": was there a moment ago and is gone or damaged; start the run again");
}

bool StoredProgress::due(double bytes) {
  const auto now = Clock::now();
  const double seconds = seconds_between(std::exchange(counted_, now), now);
  timing_.block_done(seconds, seconds);  // all of it would have to be done again
  std::uint8_t due = timing_.due(bytes) ? 1 : 0;
  team_.broadcast(std::as_writable_bytes(std::span(&due, 1)), 0);
  return due != 0;
}

void StoredProgress::write(int step, const std::vector<std::string>& mine,
                           const std::function<Record(std::size_t part)>& make) {
  const auto start = Clock::now();
  double bytes = 0;
  for (std::size_t i = 0; i < mine.size(); ++i) {
    Record record = make(i);
    if (team_.rank() == 0 && i == 0) record.attributes[kOrigin] = origin_();
    for (const auto& [name, tensor] : record.tensors)
      bytes += static_cast<double>(tensor.bytes().size());
    store_.commit(key(step, mine[i]), record);
    monitor_.tick();
  }
  team_.barrier();
  // What other ranks have of older steps, of a team of another size, too.
  if (team_.rank() == 0) {
    for (const std::string& found : store_.keys(folder_)) {
      if (number_behind(kStep, found) < step) store_.remove(found);
    }
  }
  team_.barrier();
  counted_ = Clock::now();
  timing_.written(bytes, seconds_between(start, counted_));
}

void remove_progress(const std::string& recipe, int block, RunStore& store) {
  for (const std::string& key : store.keys(folder_of(recipe, block))) store.remove(key);
}

void remove_unused_progress(const std::vector<std::string>& unfinished, RunStore& store) {
  for (const std::string& key : store.keys("recipes")) {
    const std::size_t end = key.find(kProgress);
    if (end == key.npos) continue;
    const std::string recipe = key.substr(kRecipes.size(), end - kRecipes.size());
    const bool wanted = std::ranges::find(unfinished, recipe) != unfinished.end();
    if (!wanted || store.bytes(block_key(recipe, number_behind(kProgress, key))) > 0)
      store.remove(key);
  }
}

}  // namespace roundhouse
