#include <algorithm>
#include <cstdio>
#include <vector>

#include <fmt/format.h>

#include "base/error.h"
#include "pipeline/commands.h"
#include "pipeline/hdf5_store.h"
#include "pipeline/run_folder.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSums = "SHA256SUMS";

// Counts what was looked at and prints what is wrong.
class Verdict {
 public:
  void whole() { ++whole_; }
  void damaged(const fs::path& file, const std::string& why, const std::string& remedy) {
    ++damaged_;
    fmt::print("{}: {}{}\n", file.string(), why, remedy);
    std::fflush(stdout);
  }
  int finish() const {
    fmt::print("{} whole, {} damaged\n", whole_, damaged_);
    return damaged_ == 0 ? 0 : 1;
  }

 private:
  int whole_ = 0;
  int damaged_ = 0;
};

void verify_export(const fs::path& directory, const std::string& remedy, Verdict& verdict) {
  const std::vector<std::string> wrong = verify_checkpoint(directory);
  for (const std::string& file : wrong) verdict.damaged(directory, file, remedy);
  if (wrong.empty()) verdict.whole();
}

void verify_run(const fs::path& run, Verdict& verdict) {
  std::vector<fs::path> records, exports;
  for (fs::recursive_directory_iterator at(run), end; at != end; ++at) {
    if (at->path() == run / "scratch") at.disable_recursion_pending();
    if (at->is_regular_file() && at->path().extension() == ".h5") records.push_back(at->path());
    if (at->is_regular_file() && at->path().filename() == kSums)
      exports.push_back(at->path().parent_path());
  }
  // The order of a directory is the file system's.
  std::ranges::sort(records);
  std::ranges::sort(exports);
  for (const fs::path& record : records) {
    std::string why;
    try {
      why = check_seal(record);
    } catch (const Error& error) {
      why = error.what();  // cannot be read
    }
    if (why.empty()) {
      verdict.whole();
    } else {
      verdict.damaged(record, why, " (the next `roundhouse run` makes it again)");
    }
  }
  for (const fs::path& directory : exports) {
    verify_export(directory, " (the next `roundhouse export` writes it again)", verdict);
  }
}

}  // namespace

int verify_command(const fs::path& target) {
  Verdict verdict;
  if (!fs::is_directory(target)) throw InputError(target.string() + " is not a folder");
  if (fs::exists(target / kSums)) {
    verify_export(target, "", verdict);
  } else if (fs::exists(target / "identity.json") || fs::exists(target / "config.yaml")) {
    verify_run(target, verdict);
  } else {
    throw InputError(target.string() +
                     " is neither a run (no config.yaml) nor an export (no SHA256SUMS)");
  }
  return verdict.finish();
}

}  // namespace roundhouse
