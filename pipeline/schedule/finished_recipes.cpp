#include "pipeline/schedule/finished_recipes.h"

#include <algorithm>
#include <span>
#include <utility>

#include "comm/together.h"
#include "pipeline/schedule/unit.h"

namespace roundhouse {

// Notes go between the first ranks of the teams.
FinishedRecipes::FinishedRecipes(const Mesh& mesh, int blocks, const std::vector<Recipe>& recipes,
                                 const std::vector<std::size_t>& finished,
                                 const std::vector<std::size_t>& unfinished, RunStore& store,
                                 std::function<void()> tick)
    : mesh_(mesh),
      blocks_(blocks),
      recipes_(recipes),
      store_(store),
      tick_(std::move(tick)),
      keeper_(recipes.size(), -1),
      comm_(mesh.world().split(0, mesh.world().rank())) {
  const int stages = mesh.shape().pipeline;
  int next = 0;
  for (const std::size_t recipe : finished) {
    if (next == mesh.stage()) finished_.push_back(recipe);
    next = (next + 1) % stages;
  }
  for (const std::size_t recipe : unfinished) {
    keeper_[recipe] = next;
    next = (next + 1) % stages;
    if (keeper_[recipe] != mesh.stage()) continue;
    Kept& kept = kept_.emplace_back(Kept{.recipe = recipe, .notes = {}});
    for (int stage = 0; stage < stages; ++stage) {
      const PartRange range = units_of(recipe, stage);
      Note& note = kept.notes.emplace_back();
      note.bytes.assign(static_cast<std::size_t>(range.end - range.begin), -1);
      if (stage == mesh.stage() || mesh.team().rank() != 0) continue;
      const Receive receive{std::as_writable_bytes(std::span(note.bytes)),
                            stage * mesh.shape().data};
      note.ticket = comm_->start({}, {&receive, 1});
    }
  }
}

PartRange FinishedRecipes::units_of(std::size_t recipe, int stage) const {
  const int stages = mesh_.shape().pipeline;
  PartRange units = parts_of_rank(blocks_, stage, stages);
  if (stage + 1 == stages) units.end = recipes_[recipe].units(blocks_);
  return units;
}

void FinishedRecipes::tell(std::size_t recipe, bool whole) {
  const int keeper = keeper_[recipe];
  if (keeper < 0) return;
  const PartRange mine = units_of(recipe, mesh_.stage());
  std::vector<std::int64_t> bytes;
  for (int block = mine.begin; block < mine.end; ++block) {
    // Who has committed a record sees it; the first rank has seen those that were there before.
    const int rank = mesh_.team().rank();
    const bool seen = rank == 0 || rank == committer_of(block, mesh_.team().size());
    const std::uint64_t length =
        whole && seen ? store_.bytes(block_key(recipes_[recipe].name, block)) : 0;
    bytes.push_back(length > 0 ? static_cast<std::int64_t>(length) : -1);
    tick_();
  }
  for (const auto& part : mesh_.team().all_gather(std::as_bytes(std::span(bytes)))) {
    std::vector<std::int64_t> theirs(bytes.size());
    std::ranges::copy(part, std::as_writable_bytes(std::span(theirs)).begin());
    std::ranges::transform(bytes, theirs, bytes.begin(),
                           [](std::int64_t a, std::int64_t b) { return std::max(a, b); });
  }
  if (mesh_.team().rank() != 0) return;
  for (int block = mine.begin; block < mine.end; ++block) {
    const std::int64_t length = bytes[block - mine.begin];
    if (length > 0) told_[block_key(recipes_[recipe].name, block)] = length;
  }
  if (keeper == mesh_.stage()) {
    const auto kept = std::ranges::find(kept_, recipe, &Kept::recipe);
    kept->notes[keeper].bytes = std::move(bytes);
    kept->told = true;
    return;
  }
  Note& note = *sent_.emplace_back(std::make_unique<Note>());
  note.bytes = std::move(bytes);
  const Send send{std::as_bytes(std::span(note.bytes)), keeper * mesh_.shape().data};
  note.ticket = comm_->start({&send, 1}, {});
}

std::vector<std::size_t> FinishedRecipes::take() {
  nlohmann::json ready = nlohmann::json::array();  // [recipe, [length by block]]
  for (Kept& kept : kept_) {
    bool whole = kept.told;
    nlohmann::json lengths = nlohmann::json::array();
    for (Note& note : kept.notes) {
      if (note.ticket && note.ticket->done()) note.ticket.reset();
      whole = whole && !note.ticket && std::ranges::find(note.bytes, -1) == note.bytes.end();
      for (const std::int64_t each : note.bytes) lengths.push_back(each);
    }
    if (whole) ready.push_back({kept.recipe, std::move(lengths)});
  }
  std::vector<std::size_t> recipes = std::exchange(finished_, {});
  for (const nlohmann::json& each : nlohmann::json::parse(share(mesh_.team(), ready.dump()))) {
    const auto recipe = each[0].get<std::size_t>();
    recipes.push_back(recipe);
    std::erase_if(kept_, [&](const Kept& kept) { return kept.recipe == recipe; });
    for (int block = 0; block < recipes_[recipe].units(blocks_); ++block) {
      store_.expect(block_key(recipes_[recipe].name, block), each[1][block].get<std::uint64_t>());
    }
  }
  return recipes;
}

void FinishedRecipes::finish(Communicator& all) {
  for (Kept& kept : kept_) {
    for (Note& note : kept.notes) {
      if (note.ticket) note.ticket->wait();
    }
  }
  for (const auto& note : sent_) note->ticket->wait();
  const std::string text = told_.dump();
  for (const auto& part : all.all_gather(std::as_bytes(std::span(text)))) {
    const char* const begin = reinterpret_cast<const char*>(part.data());
    const nlohmann::json theirs = nlohmann::json::parse(begin, begin + part.size());
    for (const auto& [key, length] : theirs.items())
      store_.expect(key, length.get<std::uint64_t>());
  }
}

}  // namespace roundhouse
