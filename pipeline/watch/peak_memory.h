#pragma once

namespace roundhouse {

// Most memory that this process has had resident so far, in MiB.
double peak_memory_mib();

}  // namespace roundhouse
