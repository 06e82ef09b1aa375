// One unit of progress, a block of a recipe, and what a method decides for the whole model: made, and committed.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "pipeline/schedule/schedule.h"

namespace roundhouse {

// Attributes of what is committed, besides its own.
inline constexpr const char* kMadeOf = "made_of";          // tensor name -> hash of what it held
inline constexpr const char* kComputedBy = "computed_by";  // Backend::computes_as()
inline constexpr const char* kDecision = "decision";       // of a decision's record
inline constexpr const char* kStatistics = "statistics";   // of a record of statistics
inline constexpr const char* kDecidedAs =
    "decided_as";  // of a block: identity_of() the decision that it was made by

std::string identity_of(const nlohmann::json& decision);

// What a block that is made now is made of and by: attributes of its record.
nlohmann::json origin_of_block(const Schedule& schedule, int block);

double seconds_since(std::chrono::steady_clock::time_point start);

// The ranks of a team take turns: which of them packs and writes a block.
int committer_of(int block, int team_size);

// Collective over the team: has the method make a block, and its committer pack it and begin to write it (Schedule::behind), once the
// record of the unit before is durable. Schedule::on_unit comes when that of this one is. `load_seconds`: since `start`, what loading
// its weights took; nothing: they were there.
void make_unit(Schedule& schedule, const Recipe& recipe, const Method& method, BlockTask& task,
               std::chrono::steady_clock::time_point start, std::optional<double> load_seconds);

// Collective over the team: what its ranks have committed is durable; or all throw what writing it has met.
void finish_writing(Schedule& schedule);

// On one rank: unit `block` of a recipe, the one of this number, or what it decides for the whole model, cannot be made, as an
// UnquantizableError said. Goes to the store, the journal and Schedule::failures.
void note_failure(Schedule& schedule, std::size_t number, const Recipe& recipe, int block,
                  const std::string& what);
// Collective over the world: decide(); or the state's failure, and false.
bool decide_or_fail(Schedule& schedule, std::size_t number, const Recipe& recipe,
                    const std::vector<nlohmann::json>& statistics, RecipeState& state);

// Collective over the world: has the method decide, commits what it decided, and makes it the state's decision. `statistics`: see
// ModelTask. Throws InputError if blocks that are there were made by another one, which is then not committed.
void decide(Schedule& schedule, const Recipe& recipe, std::vector<nlohmann::json> statistics,
            RecipeState& state);

// The same InputError, if a recipe's blocks do not all say that they were made by its decision.
void check_decision(const Recipe& recipe, const RecipeState& state);

}  // namespace roundhouse
