// This process and its machine, as others can recognise them.
#pragma once

#include <string>

namespace roundhouse {

std::string host_name();

struct ProcessId {
  std::string host;
  // Where the process id counts: this start of this machine's kernel, and the namespace of process ids (a container has its
  // own). Empty: not known.
  std::string space;
  int pid = 0;
  std::string
      start;  // since the machine's, in clock ticks: tells it from a later process with the same id

  bool operator==(const ProcessId&) const = default;
};
ProcessId this_process();

enum class Life {
  kAlive,
  kDead,
  kUnknown
};  // unknown: it is one of another machine, or of another container
Life life_of(const ProcessId& process);

// Gives the system back what the heap holds free between what is in use. Buffers of some MiB leave such holes, which small objects
// made since keep open: with every block a process would seem to hold more.
void give_back_free_memory();

}  // namespace roundhouse
