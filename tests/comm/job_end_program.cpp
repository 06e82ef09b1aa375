// Goes wrong in the way that the argument says; on several ranks rank 1 does (stop_first: rank 0).
// The other ranks wait for it in a barrier. job_end_test.py looks at how the job ends.
#include <unistd.h>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <thread>

#include "base/error.h"
#include "comm/device/staged_transport.h"
#include "comm/launcher.h"
#include "comm/watchdog.h"

namespace roundhouse {
namespace {

using namespace std::chrono_literals;

void hang() {
  for (;;) std::this_thread::sleep_for(10ms);
}

void run(const std::string& how, int argc, char** argv) {
  LaunchSession session(argc, argv);
  const auto world = session.world();
  const bool short_patience = how == "hang" || how == "deadlock" || how == "alone_hang";
  WatchdogOptions options;
  if (short_patience) options.patience = 2s;
  Watchdog watchdog(*world, options);
  watchdog.set_phase("the common part");
  world->barrier();

  if (how == "drop") {
    // A message to a device arrives where it cannot be stored, and nobody waits for it.
    const auto fail = [](auto, auto) { throw Error("the device is broken"); };
    const auto devices =
        make_staged_transport(*world, {.download = [](auto, auto) {}, .upload = fail});
    std::vector<std::byte> message(100);
    const Send send{message, 1};
    const Receive receive{message, 0};
    std::unique_ptr<Ticket> dropped;
    if (world->rank() == 1) dropped = devices->start({}, {&receive, 1});
    world->barrier();  // it comes after the receiver's call
    if (world->rank() == 0) devices->start({&send, 1}, {})->wait();
    dropped.reset();
  }

  const int culprit = how == "stop_first" || world->size() == 1 ? 0 : 1;
  if (world->rank() == culprit) {
    watchdog.set_phase("the guilty part");
    std::this_thread::sleep_for(
        300ms);  // so that the heartbeat knows the phase, and the others sit in the barrier
    if (how == "throw" || how == "alone_throw") throw Error("the disk is full");
    if (how == "exit") _exit(7);
    if (how == "kill") raise(SIGKILL);
    if (how == "stop" || how == "stop_first") raise(SIGSTOP);
    // A stopped rank that mpirun wakes in order to end it must not find its way through the
    // barrier.
    if (how == "stop" || how == "stop_first" || how == "hang" || how == "alone_hang") hang();
    if (how == "unwind") {
      // Transfers that the peers will never join, under way while the exception passes.
      std::vector<std::byte> out(1 << 22), in(1 << 22);
      const Send send{out, 0};
      const Receive receive{in, 0};
      const auto ticket = world->start({&send, 1}, {&receive, 1});
      throw Error("the disk is full");
    }
  }
  const Watchdog::Waiting waiting(&watchdog);
  if (how == "deadlock") {
    std::vector<std::byte> message(1);
    const Receive receive{message, (world->rank() + 1) % world->size()};
    world->start({}, {&receive, 1})->wait();
  }
  world->barrier();
  std::printf("rank %d is through\n", world->rank());
}

}  // namespace
}  // namespace roundhouse

int main(int argc, char** argv) {
  try {
    roundhouse::run(argv[1], argc, argv);
  } catch (const std::exception& e) {
    roundhouse::abort_job(1, e.what());
  }
}
