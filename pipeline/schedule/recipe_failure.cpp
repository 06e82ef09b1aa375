#include "pipeline/schedule/recipe_failure.h"

#include <algorithm>
#include <map>
#include <span>
#include <utility>

#include <fmt/format.h>

#include "model/block/model_units.h"

namespace roundhouse {
namespace {

constexpr const char* kFailed = "failed";
constexpr const char* kOutside = "outside";  // only where it is no block

std::string prefix_of(const std::string& recipe) { return "recipes/" + recipe + "/failed-"; }

std::vector<std::string> failure_keys(const std::string& recipe, RunStore& store) {
  std::vector<std::string> keys = store.keys("recipes/" + recipe);
  std::erase_if(keys, [&](const std::string& key) { return !key.starts_with(prefix_of(recipe)); });
  return keys;
}

}  // namespace

std::string RecipeFailure::place() const {
  return block == kWholeModel ? "the whole model" : unit_name(block, outside);
}

std::string failure_key(const std::string& recipe, int block) {
  if (block == RecipeFailure::kWholeModel) return prefix_of(recipe) + "model";
  return prefix_of(recipe) + fmt::format("{:04}", block);
}

std::optional<RecipeFailure> find_failure(const std::string& recipe, RunStore& store) {
  std::optional<RecipeFailure> first;
  for (const std::string& key : failure_keys(recipe, store)) {
    std::optional<nlohmann::json> attributes = store.attributes(key);
    if (!attributes || !attributes->contains(kFailed)) continue;
    const nlohmann::json& failed = attributes->at(kFailed);
    const int block = failed.value("block", RecipeFailure::kWholeModel);
    if (first && first->block <= block) continue;
    first = RecipeFailure{.block = block,
                          .outside = failed.value(kOutside, std::vector<std::string>()),
                          .reason = failed.value("reason", ""),
                          .attributes = *attributes};
  }
  return first;
}

bool forget_failures(const std::string& recipe, RunStore& store) {
  const std::vector<std::string> keys = failure_keys(recipe, store);
  for (const std::string& key : keys) store.remove(key);
  return !keys.empty();
}

void RecipeFailures::add(std::size_t recipe, const std::string& name, RecipeFailure failure,
                         RunStore& store) {
  Record record;
  record.attributes = std::move(failure.attributes);
  nlohmann::json& failed = record.attributes[kFailed];
  failed = {{"block", failure.block}, {"reason", failure.reason}};
  if (!failure.outside.empty()) failed[kOutside] = failure.outside;
  store.commit(failure_key(name, failure.block), record);
  found_.push_back({recipe, failure.block, failure.outside, failure.reason});
}

std::vector<std::pair<std::size_t, RecipeFailure>> RecipeFailures::share(
    Communicator& world) const {
  std::map<std::size_t, RecipeFailure> first;
  const std::string text = found_.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  for (const auto& part : world.all_gather(std::as_bytes(std::span(text)))) {
    const char* const begin = reinterpret_cast<const char*>(part.data());
    for (const nlohmann::json& each : nlohmann::json::parse(begin, begin + part.size())) {
      RecipeFailure failure{.block = each[1].get<int>(),
                            .outside = each[2].get<std::vector<std::string>>(),
                            .reason = each[3].get<std::string>()};
      const auto [at, added] = first.emplace(each[0].get<std::size_t>(), failure);
      if (!added && failure.block < at->second.block) at->second = failure;
    }
  }
  return {first.begin(), first.end()};
}

}  // namespace roundhouse
