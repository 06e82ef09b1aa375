// One unit of progress, a block of a recipe, and what a method decides for the whole model: made, and committed.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "pipeline/schedule/schedule.h"

namespace roundhouse {

// Attributes of what is committed, besides its own.
inline constexpr const char* kMadeOf = "made_of";          // tensor name -> hash of what it held
inline constexpr const char* kComputedBy = "computed_by";  // Backend::computes_as()
inline constexpr const char* kDecision = "decision";       // of a decision's record

// What a block that is made now is made of and by: attributes of its record.
nlohmann::json origin_of_block(const Schedule& schedule, int block);

double seconds_since(std::chrono::steady_clock::time_point start);

// Methods name the linear; which block of which recipe it is one of is said here: an Error of `work` begins with the place.
void with_place_named(const std::string& place, const std::function<void()>& work);

// Collective over the team: has the method make a block, commits it and says so (Schedule::on_unit). `load_seconds`: since
// `start`, what loading its weights took.
void make_unit(Schedule& schedule, const Recipe& recipe, const Method& method, BlockTask& task,
               std::chrono::steady_clock::time_point start, double load_seconds);

// Collective over the world: has the method decide, and commits what it decided. `statistics`: see ModelTask.
nlohmann::json decide(Schedule& schedule, const Recipe& recipe,
                      std::vector<nlohmann::json> statistics);

}  // namespace roundhouse
