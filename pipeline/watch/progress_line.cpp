#include "pipeline/watch/progress_line.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include <fmt/format.h>

#include "base/quote.h"

namespace roundhouse {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::size_t terminal_columns() {
  winsize size{};
  const bool known = ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : 80;
}

// One fwrite a line: stderr has no buffer, and lines of several ranks must not mix.
void print(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stderr); }

}  // namespace

std::string format_duration(double seconds) {
  if (!(seconds >= 0 && seconds < 1e9)) return "unknown";
  if (seconds < 9.95) return fmt::format("{:.1f} s", seconds);
  const auto whole = static_cast<long long>(seconds + 0.5);
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{} min {} s", whole / 60, whole % 60);
  if (whole < 86400) return fmt::format("{} h {} min", whole / 3600, whole % 3600 / 60);
  return fmt::format("{} d {} h", whole / 86400, whole % 86400 / 3600);
}

void ProgressLine::plan(int total, int done) {
  total_ = total;
  done_ = done;
}

void ProgressLine::set_done(int done) { done_ = std::min(done, total_); }

std::string ProgressLine::time_left() const {
  return left_ && *left_ > 0 ? format_duration(*left_) + " left" : "";
}

void ProgressLine::unit_done(const std::string& what, double seconds) {
  if (terminal_) {
    redraw();
    return;
  }
  const std::string count = total_ > 0 ? fmt::format("[{}/{}] ", done_, total_) : "";
  const std::string left = time_left();
  print(fmt::format("{}{}{}: {}{}\n", mark_, count, what, format_duration(seconds),
                    left.empty() ? "" : ", " + left));
}

void ProgressLine::say(const std::string& line) {
  erase();
  print(mark_ + printable_line(line) + "\n");
}

void ProgressLine::redraw() {
  if (!terminal_ || seconds_since(drawn_) < 0.1) return;
  drawn_ = Clock::now();
  std::string line;
  if (total_ > 0) {
    constexpr std::size_t kWidth = 24;
    const std::size_t filled =
        kWidth * static_cast<std::size_t>(done_) / static_cast<std::size_t>(total_);
    std::string bar(filled, '=');
    if (filled < kWidth) bar += '>';
    bar.resize(kWidth, ' ');
    line = fmt::format("[{}] {}/{}  ", bar, done_, total_);
  }
  line += printable_line(phase_);
  if (const std::string left = time_left(); !left.empty()) line += "  " + left;
  line.resize(std::min(line.size(), terminal_columns() - 1));
  print("\r\x1b[K" + line);
  visible_ = true;
}

void ProgressLine::erase() {
  if (std::exchange(visible_, false)) print("\r\x1b[K");
  drawn_ = {};
}

}  // namespace roundhouse
