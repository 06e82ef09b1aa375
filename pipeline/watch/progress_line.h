// Progress for people, on stderr. On a terminal one line that is drawn over and over:
//   [=======>          ] 12/32  gptq-w4g128 block 5  3.2 s each, 1 min 4 s left
// In a log one line a unit:
//   [12/32] gptq-w4g128 block 5: 3.2 s, 1 min 4 s left
// Time left is what the one who counts says: TimeLeft.
#pragma once

#include <chrono>
#include <optional>
#include <string>

namespace roundhouse {

std::string format_duration(double seconds);  // "3.2 s", "1 min 4 s", "2 h 5 min", "3 d 4 h"

class ProgressLine {
 public:
  // `mark` begins every line that is not drawn over: "[rank 3] ", or nothing.
  ProgressLine(bool terminal, std::string mark) : terminal_(terminal), mark_(std::move(mark)) {}
  ~ProgressLine() { erase(); }
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  void plan(int total, int done);
  void set_done(int done);                                           // units of the whole job
  void set_left(std::optional<double> seconds) { left_ = seconds; }  // nothing: not known
  void phase(const std::string& what) { phase_ = what; }
  void unit_done(const std::string& what, double seconds);
  void say(const std::string& line);  // stays, above the live line
  void redraw();                      // at most ten times a second; nothing in a log

 private:
  std::string time_left() const;  // empty: not known yet
  void erase();

  bool terminal_;
  std::string mark_;
  std::string phase_;
  int total_ = 0;
  int done_ = 0;
  std::optional<double> left_;
  std::chrono::steady_clock::time_point drawn_{};
  bool visible_ = false;
};

}  // namespace roundhouse
