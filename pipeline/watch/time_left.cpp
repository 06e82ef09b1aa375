#include "pipeline/watch/time_left.h"

#include <algorithm>

#include <fmt/format.h>

#include "pipeline/json_values.h"

namespace roundhouse {
namespace {

// A job that has hardly begun is believed to take what was reckoned for it: small pieces tell little of large ones. In seconds of all,
// this share counts as done in the time reckoned.
constexpr double kBelief = 0.01;

}  // namespace

std::string kind_of(const nlohmann::json& event) {
  const std::string kind = text_in(event, "event");
  if (kind == "block")
    return (event.contains("outside") ? "outside " : "block ") + text_in(event, "recipe");
  if (kind == "export") return kind + " " + text_in(event, "format");
  if (kind == "perplexity" || kind == "task") return kind + " " + text_in(event, "name");
  if (kind == "statistics") return kind + " " + text_in(event, "recipe");
  if (kind == "gradients_forward" || kind == "gradients_block") {
    return fmt::format("gradients {}x{}{}", integer_in(event, "samples", 0),
                       integer_in(event, "length", 0),
                       kind == "gradients_forward" ? " forward" : "");
  }
  return "";
}

TimeLeft::TimeLeft(const nlohmann::json& plan) {
  if (!plan.is_object()) return;
  for (const auto& [kind, work] : plan.items()) {
    works_[kind] = {.cost = number_in(work, "cost"), .left = integer_in(work, "left", 0)};
  }
}

void TimeLeft::finished(const nlohmann::json& event) {
  if (text_in(event, "event") == "recipe_failed") {
    // Nothing more is made of it.
    for (auto& [kind, work] : works_) {
      const std::string recipe = text_in(event, "recipe");
      if (kind == "block " + recipe || kind == "outside " + recipe) {
        work.left = 0;
      } else if (!kind.starts_with("block ") && !kind.starts_with("outside ") &&
                 !kind.starts_with("gradients ")) {
        work.left = std::max(0, work.left - 1);
      }
    }
    return;
  }
  const auto found = works_.find(kind_of(event));
  if (found == works_.end()) return;
  Work& work = found->second;
  work.left = std::max(0, work.left - 1);
  ++work.done;
  work.rank_seconds += number_in(event, "seconds") * std::max(1, integer_in(event, "ranks", 1));
}

std::optional<double> TimeLeft::seconds(double elapsed) const {
  double spent = 0, cost = 0;  // of what is done
  double all = 0;              // reckoned
  for (const auto& [kind, work] : works_) {
    spent += work.rank_seconds;
    cost += work.cost * work.done;
    all += work.cost * (work.done + work.left);
  }
  if (spent <= 0) return std::nullopt;
  const double believed = kBelief * all;
  const double slower = cost + believed > 0 ? (spent + believed) / (cost + believed) : 0;
  double left = 0;
  for (const auto& [kind, work] : works_)
    left += work.left * (work.done > 0 ? work.rank_seconds / work.done : work.cost * slower);
  // By the clock: as many ranks at work, and as much waiting, as until now.
  return left * elapsed / spent;
}

}  // namespace roundhouse
