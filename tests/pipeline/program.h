// The program, run from a test.
#pragma once

#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "base/file.h"
#include "tests/source_folder.h"

namespace roundhouse {

struct Outcome {
  int exit_code;
  std::string out, err;
};

// In the source folder; what it prints goes through files in `folder`. `before` stands before the program's name: variables,
// a launcher.
inline Outcome run_program(const std::filesystem::path& folder, const std::string& arguments,
                           const std::string& before = "") {
  const std::string out = (folder / "out").string(), err = (folder / "err").string();
  const int status =
      std::system(("cd " + source_folder().string() + " && " + before + " " ROUNDHOUSE_PROGRAM " " +
                   arguments + " > " + out + " 2> " + err)
                      .c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_text_file(out), read_text_file(err)};
}

}  // namespace roundhouse
