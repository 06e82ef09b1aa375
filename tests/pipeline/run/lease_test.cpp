#include "pipeline/run/lease.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <functional>
#include <optional>
#include <regex>
#include <thread>
#include <vector>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "base/write_guard.h"
#include "pipeline/run/hdf5_store.h"
#include "pipeline/run/run_folder.h"
#include "pipeline/run/sealed_json.h"
#include "tests/base/temporary_folder.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using testing::HasSubstr;
using Clock = std::chrono::steady_clock;

const std::function<void(const std::string&)> kSilent = [](const std::string&) {};
// A wait of this length would be a failure of the test.
const LeaseOptions kNeverWait{.patience = 1h,
                              .say = [](const std::string& line) { ADD_FAILURE() << line; }};

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const InUseError& error) {
    return error.what();
  }
  return "no InUseError";
}

// A process that holds a run until it is killed.
class Holder {
 public:
  explicit Holder(const fs::path& run) {
    int ready[2];
    if (::pipe(ready) != 0) throw Error("no pipe");
    pid_ = ::fork();
    if (pid_ == 0) {
      const Lease lease(run);
      const bool told = ::write(ready[1], "x", 1) == 1;
      while (told) ::pause();
      ::_exit(0);
    }
    char byte = 0;
    EXPECT_EQ(::read(ready[0], &byte, 1), 1);
    ::close(ready[0]);
    ::close(ready[1]);
  }
  ~Holder() { end(); }
  void end(bool reap = true) {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    siginfo_t info{};
    ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOWAIT);
    if (!reap) return;
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = -1;
};

class LeaseTest : public testing::Test {
 protected:
  void TearDown() override { set_write_guard({}); }
  fs::path run() const { return folder_.path(); }
  fs::path path() const { return run() / "lease"; }
  nlohmann::json said() const { return nlohmann::json::parse(read_text_file(path())); }
  // What the lease of a process that was killed says, changed as if it were another's.
  void leave_behind(const nlohmann::json& changes) {
    Holder(run()).end();
    nlohmann::json json = said();
    json.update(changes);
    write_text_atomically(path(), json.dump() + "\n");
  }
  // Of a machine that this one cannot look into.
  nlohmann::json elsewhere() const {
    return {{"host", "node7"}, {"space", "another"}, {"pid", 4711}};
  }

  TemporaryFolder folder_;
};

TEST_F(LeaseTest, ASecondProcessIsRefusedAndToldWhoHoldsTheRunAndHowToTakeIt) {
  Holder holder(run());
  const std::string message = message_of([&] { Lease lease(run(), kNeverWait); });
  EXPECT_TRUE(std::regex_match(
      message,
      std::regex(".* is in use by process " + std::to_string(holder.pid()) +
                 " on \\S+ since \\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d\\.\\d{3}Z\\. Wait for "
                 "its end, or end it.*remove .*/lease")))
      << message;
}

TEST_F(LeaseTest, AKilledProcessLetsGoAtOnceAlsoBeforeItIsReaped) {
  Holder holder(run());
  holder.end(false);
  EXPECT_NO_THROW(Lease lease(run(), kNeverWait));
  EXPECT_EQ(said().at("state"), "ended");
  EXPECT_NO_THROW(Lease again(run(), kNeverWait)) << "and so does one that is done";
}

TEST_F(LeaseTest, OneProcessCannotHoldItTwice) {
  Lease first(run(), kNeverWait);
  EXPECT_THROW(Lease(run(), kNeverWait), InUseError);
}

TEST_F(LeaseTest, AnotherProcessWithTheSameIdIsNotTakenForTheHolder) {
  // It lives, but was started later than the one that the lease is of.
  leave_behind({{"pid", ::getpid()}, {"start", "1"}});
  EXPECT_NO_THROW(Lease(run(), kNeverWait));
}

TEST_F(LeaseTest, AnEarlierStartOfTheSameSlurmJobIsOver) {
  ::setenv("SLURM_JOB_ID", "815", 1);
  ::setenv("SLURM_CLUSTER_NAME", "one", 1);
  nlohmann::json holder = elsewhere();
  holder.update({{"job", "815 on one"}, {"job_start", 1}});
  leave_behind(holder);
  ::setenv("SLURM_RESTART_COUNT", "2", 1);
  EXPECT_NO_THROW(Lease(run(), kNeverWait));

  // Two steps of one start may run side by side.
  leave_behind(holder);
  ::setenv("SLURM_RESTART_COUNT", "1", 1);
  int waited = 0;
  EXPECT_NO_THROW(Lease(run(), {.patience = 1s, .say = [&](const std::string&) { ++waited; }}));
  EXPECT_EQ(waited, 1);
  for (const char* name : {"SLURM_JOB_ID", "SLURM_CLUSTER_NAME", "SLURM_RESTART_COUNT"})
    ::unsetenv(name);
}

TEST_F(LeaseTest, AHolderElsewhereWithoutABeatIsDead) {
  leave_behind(elsewhere());
  std::string line;
  const Lease lease(run(), {.patience = 1s, .say = [&](const std::string& said) { line = said; }});
  EXPECT_THAT(line,
              HasSubstr("waiting up to 1 s for a sign of life of process 4711 on node7 since"));
  EXPECT_EQ(said().at("token"), lease.token());
}

TEST_F(LeaseTest, AHolderElsewhereWithABeatHasTheRun) {
  leave_behind(elsewhere());
  std::atomic<bool> over = false;
  std::thread holder([&] {
    nlohmann::json json = said();
    for (int beat = 1; !over; ++beat) {
      json["beat"] = std::to_string(beat);
      write_text_atomically(path(), json.dump() + "\n");
      std::this_thread::sleep_for(20ms);
    }
  });
  EXPECT_THAT(message_of([&] { Lease(run(), {.patience = 1h, .say = kSilent}); }),
              HasSubstr("is in use by process 4711 on node7"));
  over = true;
  holder.join();
  EXPECT_EQ(said().at("host"), "node7");
}

TEST_F(LeaseTest, TheBeatGoesOn) {
  const Lease lease(run(), {.beat = 10ms});
  const auto before = said().at("beat");
  const auto begin = Clock::now();
  while (said().at("beat") == before) {
    ASSERT_LT(Clock::now() - begin, 30s);
    std::this_thread::sleep_for(5ms);
  }
}

TEST_F(LeaseTest, AFileThatIsNoLeaseIsTakenWhenNobodyChangesIt) {
  write_text_atomically(path(), "half a l");
  EXPECT_NO_THROW(Lease(run(), {.patience = 100ms, .say = kSilent}));
  Lease lease(run(), kNeverWait);
}

TEST_F(LeaseTest, WhoDiedWhileTakingItDoesNotKeepOthersOut) {
  Holder(run()).end();
  const std::string first = said().at("token");
  const std::string old = read_text_file(path());
  // The next holder had just made its file.
  Holder(run()).end();
  fs::rename(path(), path().native() + ".after-" + first);
  write_text_atomically(path(), old);
  const Lease lease(run(), kNeverWait);
  EXPECT_EQ(said().at("token"), lease.token());
  EXPECT_EQ(std::distance(fs::directory_iterator(run()), {}), 1) << "nothing else is left";
}

// All try at once, and hold it until all have tried.
int winners(const fs::path& run, int starters) {
  int go[2], results[2], leave[2];
  if (::pipe(go) != 0 || ::pipe(results) != 0 || ::pipe(leave) != 0) throw Error("no pipe");
  std::vector<pid_t> pids;
  for (int i = 0; i < starters; ++i) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::close(go[1]);
      ::close(leave[1]);
      char byte = 0;
      (void)!::read(go[0], &byte, 1);  // until the other end is closed
      char result = '?';
      std::optional<Lease> lease;
      try {
        lease.emplace(run, LeaseOptions{.patience = 1h, .say = kSilent});
        result = 'w';
      } catch (const InUseError&) {
        result = 'l';
      } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
      }
      (void)!::write(results[1], &result, 1);
      (void)!::read(leave[0], &byte, 1);
      ::_exit(0);  // as if it were killed
    }
    pids.push_back(pid);
  }
  ::close(go[1]);
  int won = 0, lost = 0;
  for (int i = 0; i < starters; ++i) {
    char result = 0;
    if (::read(results[0], &result, 1) == 1)
      (result == 'w' ? won : lost) += result == '?' ? 1000 : 1;
  }
  ::close(leave[1]);
  for (const pid_t pid : pids) ::waitpid(pid, nullptr, 0);
  for (const int end : {go[0], results[0], results[1], leave[0]}) ::close(end);
  EXPECT_EQ(won + lost, starters);
  return won;
}

TEST_F(LeaseTest, OfManyWhoStartAtOnceExactlyOneGetsIt) {
  for (int round = 0; round < 20;
       ++round) {  // the first finds no lease, the others that of a dead holder
    ASSERT_EQ(winners(run(), 12), 1) << "round " << round;
    if (round % 5 == 4) fs::remove(path());
  }
}

TEST_F(LeaseTest, WhoHasLostTheRunWritesNothingMore) {
  std::atomic<int> told = 0;
  const Lease lease(run(), {.beat = 10ms, .on_lost = [&](const std::string&) { ++told; }});
  Hdf5Store store(run());
  Journal journal(run());
  const LeaseGuard guard(run(), lease.token());
  set_write_guard([&] { guard.check(); });
  store.commit("calibration", {});
  journal.append({{"event", "a"}});

  // Another takes it, which had found it without a beat.
  fs::remove(path());
  Holder other(run());
  const std::string theirs = "was taken from this job.* by process " + std::to_string(other.pid());
  const auto refused = [&](const std::function<void()>& write) {
    const std::string message = message_of(write);
    EXPECT_TRUE(std::regex_search(message, std::regex(theirs))) << message;
  };
  refused([&] { store.commit("recipes/a/block-0000", {}); });
  refused([&] { store.remove("calibration"); });
  refused([&] { journal.append({{"event", "b"}}); });
  refused([&] { write_sealed_json(run() / "results/a.json", "results/a.json", {{"a", 1}}); });
  EXPECT_TRUE(fs::exists(run() / "calibration.h5"));
  EXPECT_FALSE(fs::exists(run() / "recipes"));
  EXPECT_FALSE(fs::exists(run() / "results"));
  EXPECT_EQ(read_journal(run()).size(), 1u);
  const auto begin = Clock::now();
  while (told == 0) {
    ASSERT_LT(Clock::now() - begin, 30s) << "its thread finds out by itself";
    std::this_thread::sleep_for(5ms);
  }
  EXPECT_EQ(said().at("pid"), other.pid()) << "and leaves the other's lease alone";
}

TEST_F(LeaseTest, AFolderMadeAnewUnderTheSameNameIsAnotherRun) {
  const fs::path run = folder_.path() / "run";
  fs::create_directories(run);
  const Lease lease(run, {.beat = 1h});
  const LeaseGuard guard(run, lease.token());
  guard.check();
  fs::rename(run, folder_.path() / "aside");
  fs::create_directories(run);
  EXPECT_THAT(message_of([&] { guard.check(); }),
              HasSubstr("is gone, removed by hand or with its folder"));
  fs::copy(folder_.path() / "aside/lease", run / "lease");
  EXPECT_THAT(message_of([&] { guard.check(); }), HasSubstr("is another folder"));
}

TEST_F(LeaseTest, OnceTheFirstRankHasLetGoTheOthersWriteNothing) {
  std::optional<Lease> lease(std::in_place, run());
  const LeaseGuard guard(run(), lease->token());
  lease.reset();
  EXPECT_THAT(message_of([&] { guard.check(); }), HasSubstr("has let go of it"));
}

}  // namespace
}  // namespace roundhouse
