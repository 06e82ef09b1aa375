#include "comm/together.h"

#include <algorithm>

#include "base/error.h"
#include "base/file.h"

namespace roundhouse {
namespace {

using Kind = Outcome::Kind;

Outcome run(const std::function<void()>& work) {
  try {
    with_file_errors_named(work);
  } catch (const InputError& error) {
    return {Kind::kInputError, error.what()};
  } catch (const InUseError& error) {
    return {Kind::kInUse, error.what()};
  } catch (const BadNodeError& error) {
    return {Kind::kBadNode, error.what()};
  } catch (const std::exception& error) {
    return {Kind::kError, error.what()};
  }
  return {};
}

}  // namespace

std::vector<Outcome> outcomes_of(Communicator& world, const std::function<void()>& work) {
  const Outcome mine = run(work);
  const std::string text = std::string(1, static_cast<char>(mine.kind)) + mine.what;
  std::vector<Outcome> all;
  for (const std::vector<std::byte>& bytes : world.all_gather(std::as_bytes(std::span(text)))) {
    const std::string theirs(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    all.push_back({static_cast<Kind>(theirs[0]), theirs.substr(1)});
  }
  return all;
}

void throw_outcome(const Outcome& outcome) {
  switch (outcome.kind) {
    case Kind::kInputError:
      throw InputError(outcome.what);
    case Kind::kInUse:
      throw InUseError(outcome.what);
    case Kind::kBadNode:
      throw BadNodeError(outcome.what);
    case Kind::kDone:
    case Kind::kError:
      break;
  }
  throw Error(outcome.what);
}

void together(Communicator& world, const std::function<void()>& work,
              const std::function<void()>& tidy_up) {
  const std::vector<Outcome> outcomes = outcomes_of(world, work);
  const auto is = [](Kind kind) { return [kind](const Outcome& o) { return o.kind == kind; }; };
  const auto failed = std::ranges::find_if_not(outcomes, is(Kind::kDone));
  if (failed == outcomes.end()) return;
  const bool ours = std::ranges::none_of(outcomes, is(Kind::kInUse));
  if (tidy_up && ours && world.rank() == 0) tidy_up();
  world.barrier();  // nobody goes on while rank 0 still removes
  throw_outcome(*failed);
}

std::string share(Communicator& world, std::string text) {
  std::int64_t size = std::ssize(text);
  world.broadcast(std::as_writable_bytes(std::span(&size, 1)), 0);
  text.resize(static_cast<std::size_t>(size));
  world.broadcast(std::as_writable_bytes(std::span(text)), 0);
  return text;
}

}  // namespace roundhouse
