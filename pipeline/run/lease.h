// Who has a run: one job at a time.
//
// RUN/lease says it: a line of JSON with host, process, job, the time since when, a token that no other lease has, and a beat that a thread
// of the holder counts up in place. No locks of the file system are needed, only that O_EXCL makes a file once and that
// rename() replaces it whole, which NFS and Lustre do too. The file stays when its holder ends, and then says so.
//
// Another job may take it
//   at once, if the holder said that it has ended; if it was a process of this machine that is gone; if it was an earlier start
//   of the same Slurm job, of which Slurm runs one at a time;
//   else if the beat stands still for `patience`, by the taker's own clock.
// To take it from the holder with token T, a job makes RUN/lease.after-T (O_EXCL: one job only), sees whether RUN/lease
// still says T, and renames the one to the other. If it dies in between, the next makes lease.after-ITS_TOKEN.
//
// A holder that was only slow finds another token in RUN/lease before its next write (LeaseGuard), or by its thread: it ends.
#pragma once

#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

namespace roundhouse {

struct LeaseOptions {
  std::chrono::milliseconds beat{5000};
  std::chrono::milliseconds patience{30000};  // of who waits for a holder's next beat
  // Called by the thread if the run was lost to another job. Empty: abort_job(kExitInUse, why).
  std::function<void(const std::string& why)> on_lost = {};
  std::function<void(const std::string& line)> say = {};  // told before it waits; empty: stderr
  std::function<void()> tick = [] {};                     // called while it waits
};

class Lease {
 public:
  // Throws InUseError if another process has the run, and has then written nothing; Error or InputError if RUN/lease cannot
  // be read or written.
  explicit Lease(const std::filesystem::path& run, const LeaseOptions& options = {});
  ~Lease();  // says that it has ended
  const std::string& token() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Whether a job has the run, as far as its lease says: not where its holder has said that it ended, or is a process of this machine that is
// gone. Of another machine's process nothing more is known.
bool is_held(const std::filesystem::path& run);

// Does a lease still hold? On any rank, also such as only know the token.
class LeaseGuard {
 public:
  LeaseGuard(std::filesystem::path run, std::string token);
  // Throws InUseError if another job has the run now, if nobody has it any more, or if the folder is another one under the
  // old name; Error if that cannot be told.
  void check() const;

 private:
  std::filesystem::path run_;
  std::string token_;
  // Of the folder, as it was at first. Not its device: that of a network file system has another number each time it is mounted.
  unsigned long long inode_ = 0;
};

}  // namespace roundhouse
