#include "pipeline/steps/journal_facts.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/quote.h"
#include "model/block/model_units.h"
#include "pipeline/json_values.h"

namespace roundhouse {
namespace {

using Json = nlohmann::json;

constexpr int kMostRanks = 1 << 16;
constexpr double kMostSeconds = 1e8;  // of one event: three years
constexpr std::size_t kLongest = 200;

// A word of a line of the journal, for people.
std::string word(const Json& event, const char* key) {
  return printable(text_in(event, key), kLongest);
}

Json member(const Json& object, const char* key) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  return found == object.end() ? Json() : *found;
}

std::string dump(const Json& value) {
  return printable(value.dump(-1, ' ', false, Json::error_handler_t::replace), 4 * kLongest);
}

std::map<std::string, double> phases_in(const Json& event) {
  std::map<std::string, double> phases;
  const Json seconds = member(event, "phases");
  if (!seconds.is_object()) return phases;
  for (const auto& [phase, value] : seconds.items()) {
    if (!value.is_number()) continue;
    const double number = value.get<double>();
    if (number >= 0 && number <= kMostSeconds) phases[printable(phase, kLongest)] = number;
  }
  return phases;
}

std::optional<Span> span_of(const Json& event, const std::string& kind, std::string what) {
  std::optional<double> end = seconds_since_1970(text_in(event, "time"));
  const double seconds = number_in(event, "seconds");
  if (!end || !(seconds > 0) || !(seconds <= kMostSeconds)) return std::nullopt;
  // A block is told of by who has committed it, once it is written.
  const double since = number_in(event, "told_after");
  if (since > 0 && since <= kMostSeconds) *end -= since;
  const int rank = integer_in(event, "first_rank", integer_in(event, "rank", 0));
  const int ranks = integer_in(event, "ranks", 1);
  if (rank < 0 || ranks < 1 || rank + ranks > kMostRanks) return std::nullopt;
  return Span{.first_rank = rank,
              .ranks = ranks,
              .begin = *end - seconds,
              .end = *end,
              .kind = kind,
              .what = std::move(what),
              .phases = phases_in(event)};
}

// The name of the unit that was made.
std::string unit_of(const Json& event) {
  return unit_name(integer_in(event, "block", 0), texts_in(event, "outside"));
}

std::optional<Span> span_of(const Json& event) {
  const std::string kind = text_in(event, "event"), recipe = word(event, "recipe");
  if (kind == "block")
    return span_of(event, "quantize", fmt::format("{} {}", recipe, unit_of(event)));
  if (kind == "gradients_block")
    return span_of(event, "gradients",
                   fmt::format("gradients of block {}", integer_in(event, "block", 0)));
  if (kind == "export")
    return span_of(event, "export", fmt::format("{} as {}", recipe, word(event, "format")));
  if (kind == "perplexity" || kind == "task")
    return span_of(event, "evaluate", fmt::format("{} on {}", recipe, word(event, "name")));
  return std::nullopt;
}

bool is_rank(double rank) { return rank >= 0 && rank < kMostRanks && rank == std::floor(rank); }

void add_transfer(const Transfer& transfer, JournalFacts& facts) {
  const double seconds = transfer.end - transfer.begin;
  const bool possible = seconds >= 0 && seconds <= kMostSeconds && transfer.messages > 0 &&
                        transfer.messages < 1e12 && transfer.bytes >= 0 && transfer.bytes < 1e18;
  if (possible && transfer.from != transfer.to) facts.transfers.push_back(transfer);
}

// Between the teams of two stages: each rank to that of the same place.
void add_handover(const Json& event, JournalFacts& facts) {
  const std::optional<double> end = seconds_since_1970(text_in(event, "time"));
  const int first = integer_in(event, "rank", -1), ranks = integer_in(event, "ranks", 0);
  if (!end || ranks < 1 || first < ranks || !is_rank(first + ranks - 1)) return;
  for (int rank = first; rank < first + ranks; ++rank) {
    add_transfer({.from = rank - ranks,
                  .to = rank,
                  .begin = *end - number_in(event, "on_its_way_seconds"),
                  .end = *end,
                  .bytes = number_in(event, "bytes") / ranks,
                  .what = fmt::format("{} before block {}", word(event, "recipe"),
                                      integer_in(event, "block", 0))},
                 facts);
  }
}

// What an event says of messages: [from, to, how many, bytes, begin, end], ranks as they follow that of the event, seconds before it.
void add_listed_transfers(const Json& event, JournalFacts& facts) {
  const std::optional<double> time = seconds_since_1970(text_in(event, "time"));
  const int first = integer_in(event, "rank", 0);
  if (!time) return;
  const std::string recipe = word(event, "recipe");
  const std::string what = recipe.empty() ? "gradients" : "evaluation of " + recipe;
  for (const Json& each : member(event, "transfers")) {
    if (!each.is_array() || each.size() != 6 ||
        !std::ranges::all_of(each, [](const Json& value) { return value.is_number(); }))
      continue;
    const auto number = [&](std::size_t i) { return each[i].get<double>(); };
    if (!is_rank(first + number(0)) || !is_rank(first + number(1))) continue;
    add_transfer({.from = first + static_cast<int>(number(0)),
                  .to = first + static_cast<int>(number(1)),
                  .begin = *time - number(4),
                  .end = *time - number(5),
                  .messages = number(2),
                  .bytes = number(3),
                  .what = what},
                 facts);
  }
}

void add_linear(const Json& linear, int block, const std::string& unit, RecipeFacts& facts) {
  const std::string name = word(linear, "name");
  const auto error = linear.is_object() ? linear.find("relative_error") : linear.end();
  if (!name.empty() && error != linear.end())
    facts.errors[block][name] = number_in(linear, "relative_error");
  const int tries = integer_in(linear, "damping_tries", 0);
  const bool fallback = linear.is_object() && linear.contains("fallback");
  const int rounded = integer_in(linear, "rounded_rows", 0);
  if (tries <= 1 && !fallback && rounded <= 0) return;
  ++facts.fallbacks;
  std::vector<std::string> parts;
  if (tries > 1) {
    parts.push_back(fmt::format("damping was raised {} times, to {:.3g}", tries - 1,
                                number_in(linear, "damping")));
  }
  if (fallback) parts.push_back("made by " + word(linear, "fallback"));
  if (rounded > 0) parts.push_back(fmt::format("{} rows were rounded to nearest", rounded));
  facts.lines.push_back(fmt::format("{}, {}: {}", unit, name, fmt::join(parts, "; ")));
}

void add_linears(const Json& event, int block, RecipeFacts& facts) {
  const std::string unit = unit_of(event);
  for (const Json& linear : member(event, "linears")) add_linear(linear, block, unit, facts);
  for (const Json& dropped : member(event, "dropped_samples")) {
    facts.lines.push_back(fmt::format("{}, {}: {} samples are not finite and were left out", unit,
                                      word(dropped, "linears"), integer_in(dropped, "count", 0)));
  }
}

// Of the linears outside the blocks, in the unit behind the last of them.
void add_outside(const Json& event, int block, RecipeFacts& facts) {
  facts.seconds += number_in(event, "seconds");
  facts.outside_bits_per_weight = number_in(event, "bits_per_weight");
  for (const auto& [phase, seconds] : phases_in(event)) facts.phases[phase] += seconds;
  add_linears(event, block, facts);
}

void add_block(const Json& event, int block, double blocks, RecipeFacts& facts) {
  facts.seconds += number_in(event, "seconds");
  facts.relative_error += number_in(event, "relative_error") / blocks;
  facts.bits_per_weight += number_in(event, "bits_per_weight") / blocks;
  facts.sparse_bits_per_weight += number_in(event, "sparse_bits_per_weight") / blocks;
  for (const auto& [phase, seconds] : phases_in(event)) facts.phases[phase] += seconds;
  add_linears(event, block, facts);
}

void add_start(const Json& event, JournalFacts& facts) {
  facts.devices.insert(word(event, "device"));
  if (const std::string program = word(event, "program"); !program.empty())
    facts.programs.insert(program);
  const Json mesh = member(event, "mesh");
  const int lanes = integer_in(mesh, "lanes", 1);
  facts.meshes.insert(fmt::format("{} ranks as {}{} x {} by {}", integer_in(event, "ranks", 0),
                                  lanes > 1 ? fmt::format("{} lanes of ", lanes) : "",
                                  integer_in(mesh, "pipeline", 0), integer_in(mesh, "data", 0),
                                  word(event, "traffic")));
  if (const Json gpus = member(event, "gpus"); !gpus.is_null()) facts.gpus.insert(dump(gpus));
}

void add_remark(const Json& event, JournalFacts& facts) {
  const std::string kind = text_in(event, "event");
  if (kind == "other_device") {
    facts.remarks.push_back("blocks were computed by different kinds of device: " +
                            dump(member(event, "before")) + ", then " + dump(member(event, "now")));
  } else if (kind == "damaged") {
    facts.remarks.push_back(word(event, "record") + " was damaged (" + word(event, "why") +
                            ") and was removed; `roundhouse run` makes it again");
  } else if (kind == "pin_failed") {
    facts.remarks.push_back("some activations could not be pinned, so copies were slower: " +
                            word(event, "why"));
  } else if (kind == "dropped_gradients") {
    for (const Json& dropped : member(event, "dropped_samples")) {
      facts.remarks.push_back(
          fmt::format("block {}, {}: {} samples are not finite and were left out of the sums",
                      integer_in(event, "block", -1), word(dropped, "linears"),
                      integer_in(dropped, "count", 0)));
    }
  } else if (kind == "unread_tensors") {
    facts.remarks.push_back("tensors of the checkpoint that no part of the model reads: " +
                            dump(member(event, "tensors")));
  }
}

}  // namespace

std::optional<double> seconds_since_1970(const std::string& time) {
  int year = 0, month = 0, day = 0, hour = 0, minute = 0, used = 0;
  double second = 0;
  if (std::sscanf(time.c_str(), "%4d-%2d-%2dT%2d:%2d:%7lfZ%n", &year, &month, &day, &hour, &minute,
                  &second, &used) != 6 ||
      used != static_cast<int>(time.size())) {
    return std::nullopt;
  }
  const std::chrono::year_month_day date{std::chrono::year(year),
                                         std::chrono::month(static_cast<unsigned>(month)),
                                         std::chrono::day(static_cast<unsigned>(day))};
  const bool clock =
      hour >= 0 && hour < 24 && minute >= 0 && minute < 60 && second >= 0 && second < 61;
  if (!date.ok() || year < 1970 || !clock) return std::nullopt;
  const auto days = std::chrono::sys_days(date).time_since_epoch().count();
  return 86400.0 * static_cast<double>(days) + 3600.0 * hour + 60.0 * minute + second;
}

JournalFacts read_journal_facts(const std::vector<Json>& events, int blocks) {
  JournalFacts facts;
  std::map<std::string, std::map<int, const Json*>> made;  // by recipe and block
  for (const Json& event : events) {
    if (const std::string host = word(event, "host"); !host.empty()) facts.hosts.insert(host);
    if (const std::string job = word(event, "job"); !job.empty()) facts.slurm_jobs.insert(job);
    if (const std::string time = text_in(event, "time"); seconds_since_1970(time)) {
      if (facts.first.empty()) facts.first = time;
      facts.last = time;
    }
    if (std::optional<Span> span = span_of(event)) facts.spans.push_back(std::move(*span));
    const std::string kind = text_in(event, "event");
    if (kind == "handover") add_handover(event, facts);
    add_listed_transfers(event, facts);
    const int block = integer_in(event, "block", -1);
    if (kind == "block" && block >= 0 && block <= blocks)
      made[text_in(event, "recipe")][block] = &event;
    if (kind == "quantize") add_start(event, facts);
    add_remark(event, facts);
  }
  for (const auto& [recipe, own] : made) {
    const auto in_blocks = static_cast<double>(own.size() - own.count(blocks));
    for (const auto& [block, event] : own) {
      if (block == blocks) {
        add_outside(*event, block, facts.recipes[recipe]);
      } else {
        add_block(*event, block, in_blocks, facts.recipes[recipe]);
      }
    }
  }
  return facts;
}

}  // namespace roundhouse
