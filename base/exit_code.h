// The program's exit codes, for those who start it: a script need not read what is printed to know what to do.
#pragma once

namespace roundhouse {

inline constexpr int kExitDone = 0;
inline constexpr int kExitFailed = 1;  // start again: it may have passed
inline constexpr int kExitWrongInput =
    2;  // what the user gave is wrong, and all ranks agree: starting again does not help
inline constexpr int kExitInUse =
    73;  // another job has the run, and nothing was written: leave it alone
inline constexpr int kExitStopped =
    75;  // stopped as asked (signal, time limit) with work left: start again
inline constexpr int kExitBadNode =
    76;  // the nodes of the job are not alike, one is named: start again without it

}  // namespace roundhouse
