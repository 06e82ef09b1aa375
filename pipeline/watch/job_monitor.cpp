#include "pipeline/watch/job_monitor.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <optional>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "base/error.h"
#include "pipeline/json_values.h"
#include "pipeline/watch/progress_line.h"
#include "pipeline/watch/time_left.h"

namespace roundhouse {
namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* kUnitEvent = "block";
constexpr std::array kStopSignals = {SIGTERM, SIGUSR1, SIGINT};

// A signal handler reaches nothing but globals. One monitor at a time has the signals.
std::atomic<Watchdog*> signal_watchdog{nullptr};
std::atomic<int> signal_seen{0};
static_assert(std::atomic<Watchdog*>::is_always_lock_free && std::atomic<int>::is_always_lock_free);

extern "C" void on_stop_signal(int number) {
  signal_seen.store(number);
  if (Watchdog* watchdog = signal_watchdog.load()) watchdog->request_stop();
}

class StopSignals {
 public:
  explicit StopSignals(Watchdog& watchdog) {
    require(signal_watchdog.exchange(&watchdog) == nullptr, "one monitor at a time");
    signal_seen.store(0);
    for (std::size_t i = 0; i < kStopSignals.size(); ++i) {
      struct sigaction action {};
      action.sa_handler = on_stop_signal;
      sigemptyset(&action.sa_mask);
      // A second Ctrl-C meets the default action: it ends the process at once.
      action.sa_flags =
          SA_RESTART | (kStopSignals[i] == SIGINT ? static_cast<int>(SA_RESETHAND) : 0);
      ::sigaction(kStopSignals[i], &action, &before_[i]);
    }
  }
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;
  ~StopSignals() {
    // The job is over and its exit code decided. srun ends the other ranks with SIGTERM as soon as the first has left, and
    // that must not become their exit code: only Ctrl-C gets its old meaning back.
    for (std::size_t i = 0; i < kStopSignals.size(); ++i) {
      if (kStopSignals[i] == SIGINT) {
        ::sigaction(SIGINT, &before_[i], nullptr);
      } else {
        ::signal(kStopSignals[i], SIG_IGN);
      }
    }
    signal_watchdog.store(nullptr);
  }

 private:
  std::array<struct sigaction, kStopSignals.size()> before_{};
};

const char* name_of_signal(int number) {
  switch (number) {
    case SIGTERM:
      return "SIGTERM";
    case SIGUSR1:
      return "SIGUSR1";
    case SIGINT:
      return "SIGINT";
    default:
      return "another rank";
  }
}

bool draws_on_terminal(int rank) {
  const char* terminal = std::getenv("TERM");
  return rank == 0 && ::isatty(STDERR_FILENO) == 1 && terminal != nullptr &&
         std::string_view(terminal) != "dumb";
}

std::chrono::milliseconds milliseconds_of(double seconds) {
  return std::chrono::milliseconds(static_cast<std::int64_t>(seconds * 1000));
}

}  // namespace

struct JobMonitor::State {
  State(Communicator& world, Journal* journal_, double stall_seconds, double time_limit_minutes,
        double silence_seconds)
      : rank(world.rank()),
        journal(journal_),
        draws(draws_on_terminal(rank)),
        progress(draws, rank == 0 ? "" : fmt::format("[rank {}] ", rank)),
        watchdog(world, {.silence = milliseconds_of(silence_seconds),
                         .patience = milliseconds_of(stall_seconds)}),
        signals(watchdog) {
    if (time_limit_minutes > 0) deadline = Clock::now() + milliseconds_of(time_limit_minutes * 60);
  }

  void check_deadline() {
    if (!deadline || Clock::now() < *deadline) return;
    deadline.reset();
    time_is_up = true;
    watchdog.request_stop();
  }

  // Other teams' units are known from the journal, which all ranks write.
  void count_units() {
    if (journal == nullptr) return;
    for (const nlohmann::json& event : journal->read_new()) {
      if (text_in(event, "event") == kUnitEvent) ++done;
      time_left.finished(event);
    }
    progress.set_done(done);
    progress.set_left(
        time_left.seconds(std::chrono::duration<double>(Clock::now() - planned).count()));
    counted = Clock::now();
  }

  int rank;
  Journal* journal;
  bool draws;
  ProgressLine progress;
  Watchdog watchdog;
  StopSignals signals;  // goes before the watchdog that it points to
  std::function<void()> callback;
  std::optional<Clock::time_point> deadline;
  bool time_is_up = false;
  bool stop_said = false;
  int done = 0;
  TimeLeft time_left;
  Clock::time_point planned = Clock::now();
  Clock::time_point counted{};
};

JobMonitor::JobMonitor(Communicator& world, Journal* journal, double stall_seconds,
                       double time_limit_minutes, double silence_seconds)
    : state_(std::make_unique<State>(world, journal, stall_seconds, time_limit_minutes,
                                     silence_seconds)) {}

JobMonitor::~JobMonitor() = default;

void JobMonitor::plan_units(int total, int already_done, const nlohmann::json& plan) {
  if (state_->journal != nullptr) (void)state_->journal->read_new();
  state_->time_left = TimeLeft(plan);
  state_->planned = Clock::now();
  state_->done = already_done;
  state_->progress.plan(total, already_done);
}

void JobMonitor::unit_done(const std::string& what, double seconds) {
  state_->count_units();
  state_->progress.unit_done(what, seconds);
}

void JobMonitor::phase(const std::string& what) {
  state_->watchdog.set_phase(what);
  state_->progress.phase(what);
  state_->progress.redraw();
}

void JobMonitor::tick() {
  state_->watchdog.tick();
  state_->check_deadline();
  if (state_->callback) state_->callback();
  if (state_->draws && Clock::now() - state_->counted > std::chrono::seconds(1))
    state_->count_units();
  state_->progress.redraw();
}

void JobMonitor::event(const nlohmann::json& fact) {
  if (state_->journal != nullptr) state_->journal->append(fact);
}

void JobMonitor::say(const std::string& line) { state_->progress.say(line); }

bool JobMonitor::stop_requested() {
  state_->check_deadline();
  const bool stop = state_->watchdog.stop_requested();
  if (stop && state_->rank == 0 && !std::exchange(state_->stop_said, true)) {
    say(std::string("asked to stop by ") +
        (state_->time_is_up ? "the time limit" : name_of_signal(signal_seen.load())) +
        ": finishing the unit in flight");
  }
  return stop;
}

void JobMonitor::write_to(Journal* journal) const { state_->journal = journal; }

Watchdog& JobMonitor::watchdog() { return state_->watchdog; }

void JobMonitor::on_tick(std::function<void()> callback) { state_->callback = std::move(callback); }

}  // namespace roundhouse
