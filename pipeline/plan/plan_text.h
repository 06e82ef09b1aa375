// A plan for people, as `roundhouse plan` prints it.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

namespace roundhouse {

// `plan`: make_plan()'s.
std::string plan_text(const nlohmann::json& plan);

}  // namespace roundhouse
