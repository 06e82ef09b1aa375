// Which thread signal handlers run on.
#pragma once

namespace roundhouse {

// From now on SIGTERM, SIGUSR1 and SIGINT reach no thread but one that does nothing else: this one, and all that it starts from
// here on, block them. Call it before there are other threads.
//
// oneDNN's generated kernels use the stack pointer as one more register for addresses. A handler that the kernel starts on a
// thread that is in one of them writes its frame, 1 to 11 KiB, to wherever that points: over tensors and the heap's own words.
void leave_signals_to_another_thread();

}  // namespace roundhouse
