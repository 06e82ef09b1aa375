#include "base/write_guard.h"

#include <utility>

namespace roundhouse {
namespace {

std::function<void()>& the_guard() {
  static std::function<void()> guard;
  return guard;
}

}  // namespace

void set_write_guard(std::function<void()> guard) { the_guard() = std::move(guard); }

void pass_write_guard() {
  if (the_guard()) the_guard()();
}

}  // namespace roundhouse
