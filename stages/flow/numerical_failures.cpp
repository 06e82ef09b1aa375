#include "stages/flow/numerical_failures.h"

#include <cstring>
#include <span>
#include <vector>

#include "base/numerical_error.h"

namespace roundhouse {

void with_place_named(const std::string& place, const std::function<void()>& work) {
  try {
    work();
  } catch (const InUseError&) {
    throw;
  } catch (const BadNodeError&) {
    throw;
  } catch (const UnquantizableError& error) {
    throw UnquantizableError(place + ": " + error.what());
  } catch (const NumericalError& error) {
    throw NumericalError(place + ": " + error.what());
  } catch (const InputError& error) {
    throw InputError(place + ": " + error.what());
  } catch (const Error& error) {
    throw Error(place + ": " + error.what());
  }
}

void NumericalFailures::run(std::int64_t place, const std::function<void()>& work) {
  if (place_ >= 0) return;
  try {
    work();
  } catch (const NumericalError& error) {
    place_ = place;
    what_ = error.what();
  }
}

void NumericalFailures::agree(Communicator& group) const {
  if (group.size() == 1) {
    if (place_ >= 0) throw UnquantizableError(what_);
    return;
  }
  std::vector<std::byte> mine(place_ >= 0 ? sizeof place_ + what_.size() : 0);
  if (!mine.empty()) {
    std::memcpy(mine.data(), &place_, sizeof place_);
    std::memcpy(mine.data() + sizeof place_, what_.data(), what_.size());
  }
  std::int64_t first = -1;
  std::string what;
  for (const std::vector<std::byte>& theirs : group.all_gather(mine)) {
    if (theirs.empty()) continue;
    std::int64_t place = 0;
    std::memcpy(&place, theirs.data(), sizeof place);
    if (first >= 0 && place >= first) continue;
    first = place;
    what.assign(reinterpret_cast<const char*>(theirs.data()) + sizeof place,
                theirs.size() - sizeof place);
  }
  if (first >= 0) throw UnquantizableError(what);
}

}  // namespace roundhouse
