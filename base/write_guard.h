// The right to write. While a guard is set, everything that makes a file of a run visible (write_atomically(), which records,
// exports and results go through; the journal; what moves or removes files of a run) calls it first: it throws where this process
// may no longer write, because the run has another owner.
#pragma once

#include <functional>

namespace roundhouse {

// One at a time; an empty one: none. Not while another thread may be writing.
void set_write_guard(std::function<void()> guard);
void pass_write_guard();

}  // namespace roundhouse
