#include "pipeline/watch/signal_thread.h"

#include <pthread.h>
#include <unistd.h>

#include <csignal>
#include <thread>

namespace roundhouse {

void leave_signals_to_another_thread() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int number : {SIGTERM, SIGUSR1, SIGINT}) sigaddset(&signals, number);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::thread([signals] {
    pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
    for (;;) pause();
  }).detach();
}

}  // namespace roundhouse
