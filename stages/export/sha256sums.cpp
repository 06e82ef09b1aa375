#include "stages/export/sha256sums.h"

#include <algorithm>
#include <map>
#include <system_error>

#include <fmt/format.h>

#include "base/file.h"
#include "base/hash.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

// A path that stays in the folder it is taken in.
bool is_within(std::string_view name) {
  const fs::path path(name);
  return path.is_relative() && path.lexically_normal() == path && *path.begin() != "..";
}

}  // namespace

std::string sum_line(const fs::path& directory, const std::string& name) {
  return sha256_hex_of_file(directory / name) + "  " + name + "\n";
}

void write_sums(const fs::path& directory, std::vector<std::string> lines) {
  std::ranges::sort(lines, {}, [](const std::string& line) { return line.substr(line.find(' ')); });
  std::string text;
  for (const std::string& line : lines) text += line;
  write_text_atomically(directory / kSums, text);
}

std::vector<std::string> verify_checkpoint(const fs::path& directory,
                                           const std::function<void()>& tick) {
  constexpr int kMostBadLines =
      10;  // named one by one: a file of weights in this one's place has thousands
  std::vector<std::string> faults;
  std::map<std::string, std::string> sums;  // file -> digits
  if (!fs::is_regular_file(directory / kSums)) return {std::string(kSums) + ": missing"};
  const std::string text = read_text_file(directory / kSums, std::size_t{64} << 20);
  int number = 0, bad_lines = 0;
  for (std::string_view rest = text; !rest.empty();) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    ++number;
    // "DIGITS  NAME", or "DIGITS *NAME" where sha256sum was told to read in binary.
    const std::string_view digits = line.substr(0, std::min<std::size_t>(line.size(), 64));
    const bool well_formed = line.size() > 66 &&
                             digits.find_first_not_of("0123456789abcdef") == digits.npos &&
                             line[64] == ' ' && (line[65] == ' ' || line[65] == '*') &&
                             is_within(line.substr(66)) && line.find('\0') == line.npos;
    if (well_formed) {
      sums[std::string(line.substr(66))] = digits;
    } else if (++bad_lines <= kMostBadLines) {
      faults.push_back(fmt::format("{}:{}: not a line of sha256sum", kSums, number));
    }
  }
  if (bad_lines > kMostBadLines) {
    faults.push_back(fmt::format("{}: {} more lines that are none of sha256sum", kSums,
                                 bad_lines - kMostBadLines));
  }
  for (const auto& [name, digits] : sums) {
    std::error_code error;  // a name that is too long for a file is that of none
    const fs::file_status status = fs::status(directory / name, error);
    if (status.type() == fs::file_type::none && error != std::errc::filename_too_long) {
      faults.push_back(name + ": " + error.message());
    } else if (!fs::is_regular_file(status)) {
      faults.push_back(name + ": missing");
    } else if (sha256_hex_of_file(directory / name) != digits) {
      faults.push_back(name + ": damaged");
    }
    tick();
  }
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(directory)) {
    if (entry.is_directory() && !entry.is_symlink()) continue;
    const std::string name = entry.path().lexically_relative(directory).string();
    if (name != kSums && !sums.contains(name)) faults.push_back(name + ": not listed");
  }
  std::ranges::sort(faults);
  return faults;
}

}  // namespace roundhouse
