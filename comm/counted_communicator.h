// How many bytes a rank has sent: to hold what was planned beside what a run has done.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "comm/communicator.h"

namespace roundhouse {

// `inner`, and all that is split from it, with every byte that this rank sends to another one added to `sent`: of a broadcast the
// root sends all to each other rank, and of a gather each rank its own. Numbers that are reduced are not counted. `sent` must
// outlive all of them.
std::unique_ptr<Communicator> count_bytes(std::unique_ptr<Communicator> inner,
                                          std::atomic<std::uint64_t>& sent);

}  // namespace roundhouse
