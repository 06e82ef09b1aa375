// The heartbeat is a dialogue in strict turns between each rank and rank 0, so that neither side
// ever has more than one message under way, and nothing is left under way at the end:
//
//   rank r                                   rank 0
//     Beat {idle, waiting, stop, phase}  ->    keeps it as r's report
//                                        <-  Answer {stop, all_left}
//     ... `interval` later the next beat       ... the thread looks at all reports at every turn
//     Beat {..., leaving}                ->    once all ranks are leaving:
//     ends                               <-  Answer {all_left}, and ends when all answers are gone
//
// Time is counted only while the counting thread runs (see attention()): after a pause of the
// machine, or of the whole job by SIGSTOP and SIGCONT, nobody is blamed for the time in which the
// observer did not look.
#include "comm/watchdog.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/error.h"
#include "base/exit_code.h"
#include "comm/launcher.h"

namespace roundhouse {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

struct Beat {
  std::int64_t idle_ms = 0;  // since the main thread made progress
  std::int32_t waiting = 0;  // for other ranks
  std::int32_t stop = 0;     // somebody asked this rank to stop
  std::int32_t leaving = 0;  // the main thread is in ~Watchdog
  std::array<char, 100> phase{};
};

struct Answer {
  std::int32_t stop = 0;
  std::int32_t all_left = 0;
};

struct Identity {
  std::array<char, 64> host{};
  std::int64_t pid = 0;
};

template <class T>
std::span<std::byte> bytes_of(T& value) {
  return std::as_writable_bytes(std::span(&value, 1));
}

std::string in_seconds(milliseconds time) {
  return fmt::format("{:.1f} s", static_cast<double>(time.count()) / 1000);
}

}  // namespace

struct Watchdog::State {
  // What the main thread and signal handlers write and the thread reads.
  std::atomic<std::uint64_t> ticks{0};
  std::atomic<int> waiting{0};
  std::atomic<bool> stop_here{false};
  std::atomic<bool> stop_anywhere{false};
  std::atomic<bool> leaving{false};
  std::atomic<bool> quit{false};
  std::mutex phase_mutex;
  std::string phase = "starting";
  static_assert(std::atomic<bool>::is_always_lock_free,
                "request_stop() is called by signal handlers");

  WatchdogOptions options;
  milliseconds turn;  // how often the thread looks
  std::unique_ptr<Communicator> comm;
  std::vector<Identity> identities;

  // The thread's own. At rank 0 one for each other rank; elsewhere one, for rank 0.
  struct Peer {
    int rank = 0;
    Beat beat;
    Answer answer;
    Beat report;  // rank 0: the last beat that came
    milliseconds silent{0};
    bool over = false;               // rank 0: this rank has been told that all have left
    std::unique_ptr<Ticket> ticket;  // its buffers are the beat and the answer above
  };
  std::vector<Peer> peers;
  std::uint64_t seen_ticks = 0;
  milliseconds idle{0};
  Clock::time_point next_beat;
  bool stop_told = false;
  std::thread thread;

  State(Communicator& world, const WatchdogOptions& given)
      : options(given), turn(std::clamp(given.interval / 50, milliseconds(1), milliseconds(20))) {
    comm = world.split(0, world.rank());
    Identity mine;
    gethostname(mine.host.data(), mine.host.size() - 1);
    mine.pid = getpid();
    for (const auto& bytes : comm->all_gather(bytes_of(mine))) {
      std::memcpy(&identities.emplace_back(), bytes.data(), sizeof(Identity));
    }
    peers.resize(comm->rank() == 0 ? identities.size() - 1 : 1);
    if (comm->rank() == 0) {
      for (std::size_t i = 0; i < peers.size(); ++i) peers[i].rank = static_cast<int>(i) + 1;
    }
  }

  void run() {
    try {
      if (comm->rank() == 0) {
        for (Peer& peer : peers) listen(peer);
      }
      next_beat = Clock::now();
      auto before = Clock::now();
      bool over = false;
      while (!over && !quit) {
        std::this_thread::sleep_for(turn);
        const auto now = Clock::now();
        const auto passed = attention(std::chrono::duration_cast<milliseconds>(now - before));
        before = now;
        watch_main_thread(passed);
        over = comm->rank() == 0 ? lead(passed) : follow(passed);
      }
    } catch (const std::exception& e) {
      abort_job(kExitFailed, std::string("watchdog: ") + e.what());
    }
  }

  // Of the time since the last turn, what counts against others. A thread that was starved for
  // longer than this was not listening either.
  milliseconds attention(milliseconds passed) const { return std::min(passed, 10 * turn); }

  void watch_main_thread(milliseconds passed) {
    const std::uint64_t now = ticks.load(std::memory_order_relaxed);
    idle = now == std::exchange(seen_ticks, now) ? idle + passed : milliseconds(0);
    if (stop_here) stop_anywhere = true;
  }

  Beat own_report() {
    Beat beat;
    beat.idle_ms = idle.count();
    beat.leaving = leaving;
    beat.waiting = leaving || waiting > 0;
    beat.stop = stop_anywhere;
    const std::lock_guard lock(phase_mutex);
    phase.copy(beat.phase.data(), beat.phase.size() - 1);
    return beat;
  }

  void listen(Peer& peer) {
    const Receive receive{bytes_of(peer.beat), peer.rank};
    peer.ticket = comm->start({}, {&receive, 1});
  }

  // A turn of rank 0. True when all ranks have left and know it.
  bool lead(milliseconds passed) {
    std::vector<Beat> reports{own_report()};
    for (Peer& peer : peers) {
      peer.silent += passed;
      if (!peer.over && peer.ticket && peer.ticket->done()) {
        peer.ticket.reset();
        peer.report = peer.beat;
        peer.silent = milliseconds(0);
        if (peer.report.stop) stop_anywhere = true;
      }
      reports.push_back(peer.report);
    }
    const bool all_left =
        std::ranges::all_of(reports, [](const Beat& beat) { return beat.leaving; });

    bool over = all_left;
    for (Peer& peer : peers) {
      if (!peer.ticket) {
        peer.answer = {.stop = stop_anywhere, .all_left = all_left};
        const Send send{bytes_of(peer.answer), peer.rank};
        const Receive receive{bytes_of(peer.beat), peer.rank};
        peer.ticket = comm->start({&send, 1}, {&receive, all_left ? 0u : 1u});
        peer.over = all_left;
      }
      over = over && peer.over && peer.ticket->done();
    }
    if (!over) judge(reports);
    return over;
  }

  void judge(const std::vector<Beat>& reports) const {
    for (const Peer& peer : peers) {
      if (!peer.over && peer.silent >= options.silence) {
        abort_job(kExitFailed, name_of(peer.rank) + " does not answer for " +
                                   in_seconds(peer.silent) + ", last known in " +
                                   peer.report.phase.data());
      }
    }
    const auto by_idle = [](const Beat& a, const Beat& b) { return a.idle_ms < b.idle_ms; };
    const auto least = std::ranges::min_element(reports, by_idle);
    if (least->idle_ms < options.patience.count()) return;

    const auto idle_unless_waiting = [](const Beat& beat) {
      return beat.waiting ? -1 : beat.idle_ms;
    };
    const auto stuck = std::ranges::max_element(reports, {}, idle_unless_waiting);
    if (!stuck->waiting) {
      abort_job(kExitFailed,
                name_of(static_cast<int>(stuck - reports.begin())) + " made no progress for " +
                    in_seconds(milliseconds(stuck->idle_ms)) + " in " + stuck->phase.data() +
                    (reports.size() > 1 ? ", nor did any other rank" : ""));
    }
    std::string what = "deadlock: all ranks wait for one another, for " +
                       in_seconds(milliseconds(least->idle_ms)) + ":";
    constexpr std::size_t kNamed = 8;
    for (std::size_t i = 0; i < std::min(reports.size(), kNamed); ++i) {
      what +=
          (i == 0 ? " " : "; ") + name_of(static_cast<int>(i)) + " in " + reports[i].phase.data();
    }
    if (reports.size() > kNamed) what += "; and so on";
    abort_job(kExitFailed, what);
  }

  // A turn of any other rank. True when rank 0 has said that all have left.
  bool follow(milliseconds passed) {
    Peer& zero = peers.front();
    zero.silent += passed;
    if (zero.ticket && zero.ticket->done()) {
      zero.ticket.reset();
      zero.silent = milliseconds(0);
      if (zero.answer.stop) stop_anywhere = true;
      if (zero.answer.all_left) return true;
    }
    // What others wait for does not wait for the next beat.
    const bool urgent = leaving || (stop_anywhere && !stop_told);
    if (!zero.ticket && (urgent || Clock::now() >= next_beat)) {
      zero.beat = own_report();
      stop_told = zero.beat.stop;
      const Send send{bytes_of(zero.beat), 0};
      const Receive receive{bytes_of(zero.answer), 0};
      zero.ticket = comm->start({&send, 1}, {&receive, 1});
      next_beat = Clock::now() + options.interval;
    }
    // One rank is enough to say it; the others give it time to.
    const auto limit =
        options.silence + (comm->rank() == 1 ? milliseconds(0) : 2 * options.interval);
    if (zero.silent >= limit) {
      abort_job(kExitFailed, name_of(0) + " does not answer for " + in_seconds(zero.silent));
    }
    return false;
  }

  std::string name_of(int rank) const {
    const Identity& identity = identities[rank];
    return fmt::format("rank {} ({}, pid {})", rank, identity.host.data(), identity.pid);
  }
};

namespace {

thread_local Watchdog* watchdog_of_thread = nullptr;

}  // namespace

Watchdog* Watchdog::of_this_thread() { return watchdog_of_thread; }

Watchdog::Watchdog(Communicator& world, const WatchdogOptions& options)
    : state_(std::make_unique<State>(world, options)) {
  require(options.interval > milliseconds(0) && options.silence > options.interval &&
              options.patience > milliseconds(0),
          "watchdog: the silence must be longer than the interval");
  state_->thread = std::thread(&State::run, state_.get());
  watchdog_of_thread = this;
}

Watchdog::~Watchdog() {
  if (std::uncaught_exceptions() == 0) {
    set_phase("leaving");
    state_->leaving = true;
  } else {
    state_->quit =
        true;  // tickets and communicator, destroyed below by this thread, see the exception too
  }
  state_->thread.join();
  if (watchdog_of_thread == this) watchdog_of_thread = nullptr;
}

void Watchdog::tick() { state_->ticks.fetch_add(1, std::memory_order_relaxed); }

void Watchdog::set_phase(std::string phase) {
  {
    const std::lock_guard lock(state_->phase_mutex);
    state_->phase = std::move(phase);
  }
  tick();
}

void Watchdog::request_stop() { state_->stop_here = true; }

bool Watchdog::stop_requested() const { return state_->stop_here || state_->stop_anywhere; }

Watchdog::Waiting::Waiting(Watchdog* watchdog) : watchdog_(watchdog) {
  if (!watchdog_) return;
  watchdog_->tick();
  ++watchdog_->state_->waiting;
}

Watchdog::Waiting::~Waiting() {
  if (!watchdog_) return;
  --watchdog_->state_->waiting;
  watchdog_->tick();
}

}  // namespace roundhouse
