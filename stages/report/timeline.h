// A run's units, their phases and transfers, of every rank, as a trace that Perfetto (ui.perfetto.dev) and chrome://tracing open.
//
// Chrome's trace event format, JSON: a complete event ("X") for each span and rank, in microseconds since the first; phases lie within theirs. The
// journal has their sums only, so they stand one after the other: "load" first, "commit" last. Slices of a track lie one after the other or
// one within the other. Transfers have a process of their own, with a track for each sender and receiver, and say how many messages and
// bytes they are. Nodes' clocks are believed.
#pragma once

#include <string>

#include "stages/report/report.h"

namespace roundhouse {

std::string to_trace(const ReportRun& run);

}  // namespace roundhouse
